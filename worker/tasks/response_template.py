"""Tool calls by the description of its answers that a tokenizer may bring, its `response_template`."""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from tandem.complete_calls import FoundCall
from tandem.specs.tools import Tool


def describes_answers(tokenizer: PreTrainedTokenizerBase) -> bool:
    return getattr(tokenizer, "response_template", None) is not None


def read_by_template(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], written: Sequence[int], tools: Sequence[Tool]
) -> tuple[str, tuple[FoundCall, ...]] | None:
    """Of a whole answer, in token ids: what it says besides its calls, and the calls.

    None where it has none, or is not what the template describes (it was cut off, or the model does as it likes).
    """
    # Special tokens are a part of what the template describes.
    said, before = tokenizer.decode(list(written)), tokenizer.decode(list(prompt))
    offered: list[Any] = [tool.model_dump(mode="json", exclude_none=True) for tool in tools]
    try:
        message = tokenizer.parse_response(said, prefix=before, tools=offered)
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        found = tuple(FoundCall(call["name"], _as_text(call["arguments"])) for call in calls)
    except (ValueError, KeyError, TypeError):
        return None
    return (str(message.get("content") or ""), found) if found else None


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
