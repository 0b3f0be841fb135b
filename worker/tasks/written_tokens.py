"""How much a `generate()` may write, and what that costs."""

from typing import Any

from transformers.pipelines.base import Pipeline

LIBRARY_MAX_LENGTH = 20
"""What `generate()` takes where neither a call nor the model's configuration sets a length."""


def written_tokens(pipeline: Pipeline, forward_options: dict[str, Any]) -> int:
    """The most tokens that a call of the pipeline with these options writes for one text, the prompt's aside."""
    options = _options(pipeline, forward_options)
    return int(options.get("max_new_tokens") or options.get("max_length") or LIBRARY_MAX_LENGTH)


def beams(pipeline: Pipeline, forward_options: dict[str, Any]) -> int:
    """Rows that one text is to the model: the beams of its search, or the texts asked for."""
    options = _options(pipeline, forward_options)
    return max(int(options.get("num_beams") or 1), int(options.get("num_return_sequences") or 1))


def draws(pipeline: Pipeline, forward_options: dict[str, Any]) -> bool:
    """Whether tokens are drawn by chance, because the call or the model's own configuration says so."""
    return pipeline.model.can_generate() and bool(_options(pipeline, forward_options).get("do_sample"))


def _options(pipeline: Pipeline, forward_options: dict[str, Any]) -> dict[str, Any]:
    """The call's options, over the model's own, over the pipeline's. Some pipelines keep the call's apart."""
    asked = pipeline._prepare_generate_kwargs({**forward_options, **forward_options.get("generate_kwargs", {})})
    return {**pipeline.model.generation_config.to_diff_dict(), **asked}
