"""Which models of sound may hear sounds of different lengths in one forward, with the shorter ones padded."""

from typing import Any

import torch

from tandem.errors import InvalidRequest

PADDED_EXACTLY = frozenset({"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"})
"""Model types that mask the padding before anything mixes one place with another, if their convolutions are followed
by layer norms. (Group norms take in the padding; Data2Vec and the Conformers convolve after the mask.)"""


def takes_padding(model: Any) -> bool:
    """Whether a padded sound gives what it gives alone, but for rounding, when its attention mask comes with it."""
    config = model.config
    # An adapter convolves once more, at the end, and hears the padding.
    adapter = getattr(config, "add_adapter", False)
    return config.model_type in PADDED_EXACTLY and config.feat_extract_norm == "layer" and not adapter


def sound_shape(value: Any, inputs: dict[str, Any]) -> str | None:
    """Of a tensor as long as the sound, [1, samples], a shape without its length; None for any other value."""
    mask = inputs.get("attention_mask")
    if isinstance(value, torch.Tensor) and isinstance(mask, torch.Tensor) and value.shape == mask.shape:
        return f"{value.dtype}[1,samples]"
    return None


def frames_heard(model: Any, samples: int) -> int | None:
    """Frames that the model's convolutions make of so many samples; None for models without them."""
    frames = getattr(model, "_get_feat_extract_output_lengths", None)
    # Models of spectrograms have a method of this name too, which counts otherwise.
    if frames is None or not hasattr(model.config, "conv_kernel"):
        return None
    return int(frames(samples))


def require_frames(model: Any, samples: int, param: str) -> None:
    """Raises InvalidRequest for a sound that is shorter than the first thing that the model could hear."""
    frames = frames_heard(model, samples)
    if frames is not None and frames < 1:
        raise InvalidRequest(f"`{param}` is too short: the model hears nothing in {samples} samples", param=param)
