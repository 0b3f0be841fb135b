"""Linear layers with 4-bit weights: bitsandbytes' NF4, the base of QLoRA (Dettmers et al. 2023).

The weights are frozen; serving and training multiply with what they stand for, computed anew in each call. The engine
knows such a layer by its weight's `quant_state` and calls it as it is.
"""

import copy
import importlib.util
from typing import Any, cast

import torch
from torch import nn

from worker.engine.adapters.linear_update import has_four_bits, layer_dtype

LIBRARY = "bitsandbytes"


def load_options(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` takes to round a model's linear layers, but for its head, to 4 bits while it loads.

    They compute in `dtype`. Raises ImportError where bitsandbytes is not installed.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise ImportError(
            "the catalogue has quantization = 'nf4', which needs bitsandbytes on the worker: install the extra "
            "tandem-jobs[quantization], or leave `quantization` out"
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config, "device_map": {"": device}}


def keep_layout(model: nn.Module) -> None:
    """Let no layer reorder its weight in place.

    On CPUs that multiply in bfloat16 a layer would, when it is first called in eval mode. A weight in that order has
    no gradient for its input, so a twin over the same memory could not train.
    """
    for layer in model.modules():
        if has_four_bits(layer):
            cast("Any", layer).support_avx512bf16_for_cpu = False


def share_four_bits(resident: nn.Module, twin: nn.Module) -> None:
    """Put 4-bit layers over the resident's weights into a twin whose layers have no weights yet."""
    for path, layer in resident.named_modules():
        if not has_four_bits(layer):
            continue
        from bitsandbytes.nn.modules import Linear4bit

        assert isinstance(layer, nn.Linear)
        own = Linear4bit(  # type: ignore[no-untyped-call]  # bitsandbytes annotates a part of its code
            layer.in_features,
            layer.out_features,
            bias=cast("nn.Parameter | None", layer.bias) is not None,
            compute_dtype=layer_dtype(layer),
            device="meta",
        )
        own.weight = copy.copy(layer.weight)  # a Parameter of its own over the same memory
        own.support_avx512bf16_for_cpu = False  # see `keep_layout`
        twin.set_submodule(path, own)
        cast("Any", twin).is_loaded_in_4bit = True  # PEFT asks for it before it looks at a layer's class


def weight_bytes(model: nn.Module) -> int:
    """What a model's weights take, with the scales of those in 4 bits."""
    scales = [cast("Any", layer).weight.quant_state.absmax for layer in model.modules() if has_four_bits(layer)]
    return sum(tensor.nbytes for tensor in (*model.parameters(), *scales))
