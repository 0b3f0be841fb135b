"""What the library returns, as JSON has it."""

from typing import Any

import numpy as np
import torch


def json_value(value: Any) -> Any:
    """`value` with numpy's and torch's numbers as Python's, their arrays as nested lists, and tuples as lists."""
    if isinstance(value, dict):
        return {str(name): json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.tolist()
    return value
