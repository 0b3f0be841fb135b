"""What a model reads: token ids of a text, of a chat by the model's own template, or of a gap between two texts."""

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tandem.errors import InvalidRequest
from tandem.specs import ChatMessage, TextGenerationSpec
from worker.tasks.infilling import encode_gap

Prompt = str | tuple[int, ...] | tuple[ChatMessage, ...]
TOOLS_MEMBER = "tool_calls"
"""What a chat template that knows calls reads of a message."""


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    spec: TextGenerationSpec,
    prompt: Prompt,
) -> list[int]:
    """Token ids of one of the spec's prompts.

    Raises InvalidRequest if the model has no chat template, if that refuses the messages, if it knows no tools (and
    the spec leaves it to the model whether to call one), or if the model cannot fill the gap before a suffix.
    """
    if isinstance(prompt, str):
        if spec.parameters.suffix is not None:
            return encode_gap(tokenizer, prompt, spec.parameters.suffix)
        return list(tokenizer(prompt).input_ids)
    messages = [part for part in prompt if isinstance(part, ChatMessage)]
    if not messages:
        return _tokens(prompt, spec)
    # The template writes the special tokens itself.
    return list(tokenizer(chat_text(tokenizer, spec, messages), add_special_tokens=False).input_ids)


def chat_text(tokenizer: PreTrainedTokenizerBase, spec: TextGenerationSpec, messages: Sequence[ChatMessage]) -> str:
    """A conversation by the model's chat template, up to where the answer begins. Raises as `encode_prompt`."""
    if tokenizer.chat_template is None:
        raise InvalidRequest(
            "`inputs` are messages, but the model has no chat template; send one text", param="inputs"
        )
    plain = [message.for_template() for message in messages]
    tools = [tool.model_dump(mode="json", exclude_none=True) for tool in spec.offered_tools]
    if not tools:
        return _rendered(tokenizer, _understood(tokenizer, plain))
    text = _rendered(tokenizer, plain, tools)
    if text != _rendered(tokenizer, plain):
        return text
    if not spec.must_call:
        raise InvalidRequest(
            f"`tools`: the chat template of {spec.model!r} knows no tools, so that the model cannot be asked whether "
            "it wants one; take a model that was trained to call functions, or hold it to a call with `tool_choice` "
            "`required` or a named function",
            param="tools",
        )
    return _rendered(tokenizer, told(tools, spell_out(plain)))


def has_calls(prompt: Prompt) -> bool:
    """Whether it is a chat in which functions were called."""
    return any(isinstance(part, ChatMessage) and part.tool_calls for part in prompt)


def spell_out(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages for a template that knows no tools: calls and their results are texts, in Hermes's form."""
    spelt: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            if spelt and spelt[-1].get("is_result"):
                spelt[-1]["content"] += f"\n{result}"
            else:
                spelt.append({"role": "user", "content": result, "is_result": True})
            continue
        calls = [call["function"] for call in message.get(TOOLS_MEMBER, ())]
        texts = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
        content = "\n".join([*([message["content"]] if message["content"] else []), *texts])
        spelt.append({"role": message["role"], "content": content})
    return [{name: value for name, value in message.items() if name != "is_result"} for message in spelt]


def _understood(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages so that the template drops nothing of them."""
    if not any(TOOLS_MEMBER in message for message in messages):
        return messages
    return messages if TOOLS_MEMBER in tokenizer.get_chat_template() else spell_out(messages)


def told(tools: list[dict[str, Any]], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with a system message that describes the tools."""
    lines = [
        "You can call these functions, each described in JSON:",
        *(json.dumps(tool["function"], ensure_ascii=False) for tool in tools),
        "Answer with the call of a function that helps.",
    ]
    said = "\n".join(lines)
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{said}"}, *messages[1:]]
    return [{"role": "system", "content": said}, *messages]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> str:
    given: dict[str, Any] = {} if tools is None else {"tools": tools}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **given)
    except (ValueError, TypeError, TemplateError) as error:
        raise InvalidRequest(f"`inputs`: the model's chat template refuses them: {error}", param="inputs") from error
    assert isinstance(text, str), "of one conversation, not tokenized, the template makes one text"
    return text


def _tokens(prompt: Prompt, spec: TextGenerationSpec) -> list[int]:
    if spec.parameters.suffix is not None:
        raise InvalidRequest("`inputs` are token ids; with a `suffix` send the prompt as a text", param="inputs")
    return [token for token in prompt if isinstance(token, int)]
