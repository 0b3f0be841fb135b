"""The items of a response's conversation: messages, calls of functions, and what these returned. In OpenAI's shape.

What a client sends is lenient (a message may be a role and a text); what is shown is whole, and can be sent again.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, JsonValue, Tag, TypeAdapter, model_validator
from typing_extensions import TypeAliasType

from api.routes.openai.nulls import NullableSpec
from tandem.errors import InvalidRequest
from tandem.specs import ChatMessage
from tandem.specs.base import MAX_INPUT_CHARACTERS
from tandem.specs.tools import MAX_CALL_ID_CHARACTERS, CalledFunction, ToolCall

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ItemId = Annotated[str, Field(min_length=1, max_length=MAX_CALL_ID_CHARACTERS)]
ItemText = Annotated[str, Field(max_length=MAX_INPUT_CHARACTERS)]


# What is shown


class TopLogprobView(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class LogprobView(TopLogprobView):
    top_logprobs: list[TopLogprobView]


class InputTextView(BaseModel):
    type: Literal["input_text"] = "input_text"
    text: str


class OutputTextView(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[JsonValue] = []
    logprobs: list[LogprobView] = []


class InputMessageView(BaseModel):
    id: str
    type: Literal["message"] = "message"
    status: ItemStatus = "completed"
    role: Literal["user", "system", "developer"]
    content: list[InputTextView]


class OutputMessageView(BaseModel):
    id: str
    type: Literal["message"] = "message"
    status: ItemStatus = "completed"
    role: Literal["assistant"] = "assistant"
    content: list[OutputTextView]


class CallView(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus = "completed"
    call_id: str
    name: str
    arguments: str


class CallOutputView(BaseModel):
    id: str
    type: Literal["function_call_output"] = "function_call_output"
    status: ItemStatus = "completed"
    call_id: str
    output: str


OutputItemView = OutputMessageView | CallView
ItemView = InputMessageView | OutputMessageView | CallView | CallOutputView

_views_adapter: TypeAdapter[list[ItemView]] = TypeAdapter(list[ItemView])


# What is sent


class SentText(NullableSpec):
    """A part of a message. What else OpenAI's answers have in it may be sent back, and is not read."""

    type: Literal["input_text", "output_text"]
    text: ItemText
    annotations: tuple[JsonValue, ...] = ()
    logprobs: tuple[JsonValue, ...] = ()


SentContent = ItemText | tuple[SentText, ...]
"""A text, or a list of text parts, which are joined line by line."""


def _text(content: str | tuple[SentText, ...]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class SentMessage(NullableSpec):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: SentContent
    id: ItemId | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    """Taken since answers of other services have it, and not used."""

    @model_validator(mode="after")
    def _has_a_length(self) -> "SentMessage":
        if len(_text(self.content)) > MAX_INPUT_CHARACTERS:
            raise ValueError(f"`content` has more than {MAX_INPUT_CHARACTERS} characters")
        return self

    def shown(self, own_id: str) -> ItemView:
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        given = self.id or f"msg_{own_id}"
        if self.role == "assistant":
            return OutputMessageView(id=given, content=[OutputTextView(text=text) for text in parts])
        return InputMessageView(id=given, role=self.role, content=[InputTextView(text=text) for text in parts])


class SentCall(NullableSpec, CalledFunction):
    """A call that the model has made."""

    type: Literal["function_call"]
    call_id: ItemId
    id: ItemId | None = None
    status: ItemStatus | None = None

    def shown(self, own_id: str) -> ItemView:
        return CallView(id=self.id or f"fc_{own_id}", call_id=self.call_id, name=self.name, arguments=self.arguments)

    def call(self) -> ToolCall:
        return ToolCall(id=self.call_id, function=CalledFunction(name=self.name, arguments=self.arguments))


class SentCallOutput(NullableSpec):
    """What a called function has returned."""

    type: Literal["function_call_output"]
    call_id: ItemId
    output: SentContent
    id: ItemId | None = None
    status: ItemStatus | None = None

    def shown(self, own_id: str) -> ItemView:
        return CallOutputView(id=self.id or f"fco_{own_id}", call_id=self.call_id, output=_text(self.output))


Item = SentMessage | SentCall | SentCallOutput
TAKEN = ("message", "function_call", "function_call_output")


def of_a_type(*taken: str) -> Callable[[Any], Any]:
    """A validator that names the type of what is not taken, before its fields are at fault."""

    def check(sent: Any) -> Any:
        kind = sent.get("type", taken[0]) if isinstance(sent, dict) else taken[0]
        if kind not in taken:
            raise ValueError(f"is of the type {kind!r}; taken: {', '.join(taken)}. Leave it out")
        return sent

    return check


def _kind(item: Any) -> str:
    """In brackets, so that no error takes a branch's name for a field."""
    return f"({item.get('type', 'message') if isinstance(item, dict) else getattr(item, 'type', 'message')})"


SentItem = TypeAliasType(
    "SentItem",
    Annotated[
        Annotated[SentMessage, Tag("(message)")]
        | Annotated[SentCall, Tag("(function_call)")]
        | Annotated[SentCallOutput, Tag("(function_call_output)")],
        Discriminator(_kind),
        BeforeValidator(of_a_type(*TAKEN)),
    ],
)
_items_adapter: TypeAdapter[tuple[Item, ...]] = TypeAdapter(tuple[SentItem, ...])


def read_items(shown: Sequence[dict[str, JsonValue]]) -> tuple[Item, ...]:
    """The items that were shown so. Raises pydantic.ValidationError."""
    return _items_adapter.validate_python(shown)


def views_of(shown: Sequence[dict[str, JsonValue]]) -> list[ItemView]:
    """The same, as they were shown. Raises pydantic.ValidationError."""
    return _views_adapter.validate_python(shown)


def shown_items(items: Sequence[Item], hex_id: str) -> list[ItemView]:
    """Items with their ids: those that they were sent with, else ones that follow from their response's."""
    return [item.shown(f"{hex_id}_in{number}") for number, item in enumerate(items)]


def messages_of(items: Sequence[Item]) -> list[ChatMessage]:
    """The conversation as a chat template reads it: calls belong to the assistant's message that they follow.

    Raises InvalidRequest for the output of a call that is not there.
    """
    messages: list[ChatMessage] = []
    names: dict[str, str] = {}
    for item in items:
        match item:
            case SentMessage(role=role, content=content):
                # "developer" is OpenAI's new name of "system"; chat templates know the old one.
                messages.append(ChatMessage(role="system" if role == "developer" else role, content=_text(content)))
            case SentCall(call_id=call_id, name=name):
                names[call_id] = name
                spoken = messages.pop() if messages and messages[-1].role == "assistant" else None
                said, earlier = ("", ()) if spoken is None else (spoken.content, spoken.tool_calls)
                messages.append(ChatMessage(role="assistant", content=said, tool_calls=(*earlier, item.call())))
            case SentCallOutput(call_id=call_id, output=output):
                if call_id not in names:
                    raise InvalidRequest(
                        f"`input` has an output of the call {call_id!r}, and the call itself is not before it; send "
                        "it too, or name the response that has it in `previous_response_id`",
                        param="input",
                    )
                messages.append(
                    ChatMessage(role="tool", content=_text(output), tool_call_id=call_id, name=names[call_id])
                )
    return messages
