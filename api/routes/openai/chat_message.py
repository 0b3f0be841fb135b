"""The messages of OpenAI's chat requests."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from api.routes.openai.nulls import NullableSpec
from tandem.specs import ChatMessage, Spec
from tandem.specs.base import MAX_INPUT_CHARACTERS
from tandem.specs.tools import MAX_CALL_ID_CHARACTERS, MAX_CALLS, ToolCall

MAX_NAME_CHARACTERS = 64
MAX_ANNOTATIONS = 0
"""Of an earlier answer that is sent back: ours have none."""


class TextPart(NullableSpec):
    """A part of a message; only text is taken."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_INPUT_CHARACTERS)


class RefusalPart(NullableSpec):
    """What an assistant said in place of an answer."""

    type: Literal["refusal"]
    refusal: str = Field(max_length=MAX_INPUT_CHARACTERS)

    @property
    def text(self) -> str:
        return self.refusal


ContentPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class RequestMessage(NullableSpec):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[ContentPart, ...]
    """A text, or a list of text parts, which are joined line by line. An assistant's call needs none."""
    name: str | None = Field(default=None, min_length=1, max_length=MAX_NAME_CHARACTERS)
    """Who speaks, for models whose chat template tells speakers apart."""
    tool_calls: tuple[ToolCall, ...] = Field(default=(), max_length=MAX_CALLS)
    """The calls of an earlier answer, as it had them."""
    tool_call_id: str | None = Field(default=None, min_length=1, max_length=MAX_CALL_ID_CHARACTERS)
    """Of a `tool` message: which call it answers."""
    refusal: str | None = Field(default=None, max_length=MAX_INPUT_CHARACTERS)
    """Of an earlier answer; it takes the place of a missing `content`."""
    annotations: tuple[Spec, ...] = Field(default=(), max_length=MAX_ANNOTATIONS)
    """Taken empty, as an earlier answer may have it."""

    @property
    def text(self) -> str:
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return content or self.refusal or ""

    def message(self) -> ChatMessage:
        return ChatMessage(
            # "developer" is OpenAI's new name of "system"; chat templates know the old one.
            role="system" if self.role == "developer" else self.role,
            content=self.text,
            name=self.name,
            tool_calls=self.tool_calls,
            tool_call_id=self.tool_call_id,
        )

    @model_validator(mode="before")
    @classmethod
    def _with_a_content(cls, value: Any) -> Any:
        """An assistant that called functions, or refused to answer, said nothing else."""
        is_answer = isinstance(value, dict) and (value.get("tool_calls") or value.get("refusal"))
        if is_answer and value.get("content") is None:
            return {**value, "content": ""}
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("`tool_call_id` is missing: a `tool` message names the call that it answers")
        if len(self.text) > MAX_INPUT_CHARACTERS:
            raise ValueError(f"`content` has more than {MAX_INPUT_CHARACTERS} characters")
        self.message()  # refuses what does not belong to the role
        return self
