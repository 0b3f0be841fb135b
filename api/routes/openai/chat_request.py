"""OpenAI's chat request, and the text-generation spec that it stands for."""

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from tandem.specs import ChatMessage, GenerationParameters, Name, Priority, Spec, TextGenerationSpec
from tandem.specs.base import MAX_INPUT_CHARACTERS, MAX_NEW_TOKENS
from tandem.specs.generation import (
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_TOP_LOGPROBS,
    LogitBias,
)
from tandem.specs.response_format import ResponseFormat

DEFAULT_MAX_TOKENS = 256
"""Tokens of an answer if the request names no limit (OpenAI's has none: one client could fill a whole context)."""

ServedTier = Literal["default", "flex", "priority"]
PRIORITY_OF_TIER: dict[ServedTier, Priority] = {"flex": "low", "default": "normal", "priority": "high"}

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Tokens = Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)]


class TextPart(Spec):
    """A part of a message; only text is taken."""

    type: Literal["text"]
    text: str = Field(max_length=MAX_INPUT_CHARACTERS)


class RequestMessage(Spec):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[TextPart, ...]
    """A text, or a list of text parts, which are joined line by line."""

    def message(self) -> ChatMessage:
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        # "developer" is OpenAI's new name of "system"; chat templates know the old one.
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=content)

    @model_validator(mode="after")
    def _has_a_length(self) -> Self:
        length = (
            len(self.content) if isinstance(self.content, str) else sum(len(part.text) + 1 for part in self.content)
        )
        if length > MAX_INPUT_CHARACTERS:
            raise ValueError(f"`content` has more than {MAX_INPUT_CHARACTERS} characters")
        return self


class StreamOptions(Spec):
    include_usage: bool = False
    """End the stream with a chunk that counts the tokens."""


class ChatRequest(Spec):
    """OpenAI's chat request. What is not here is refused by name."""

    model: Annotated[Name, Field(examples=["smollm2-135m-instruct"])]
    """A base model, or an adapter's id."""
    messages: Annotated[
        tuple[RequestMessage, ...],
        Field(
            min_length=1,
            max_length=MAX_MESSAGES,
            examples=[[{"role": "user", "content": "What is the capital of France?"}]],
        ),
    ]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    """The newer name of `max_tokens`."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """OpenAI's default; 0 is greedy. A job submitted by POST /v1/jobs is greedy by default."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: StopString | Annotated[tuple[StopString, ...], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: LogitBias | None = None
    logprobs: bool | None = None
    """Not in a stream."""
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    service_tier: Literal["auto"] | ServedTier | None = None
    """How urgent the answer is: `flex` is the job's priority `low`, `priority` is `high`, all else `normal`."""
    user: str | None = None
    """Taken and not used."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise ValueError("`max_tokens` and `max_completion_tokens` name two limits; give one")
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` needs `stream: true`")
        if self.stream and self.logprobs:
            raise ValueError("`logprobs` are told in whole answers only: ask without `stream`")
        # What the parameters of the job refuse together, such as several choices at temperature 0.
        try:
            self.parameters()
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    def parameters(self) -> GenerationParameters:
        """How the job generates its text."""
        return GenerationParameters(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else self.stop or (),
            n=self.n,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias or {},
            logprobs=bool(self.logprobs),
            top_logprobs=self.top_logprobs or 0,
            response_format=self.response_format,
        )

    @property
    def served_tier(self) -> ServedTier | None:
        """The tier that the answer names, if the request named one."""
        return "default" if self.service_tier == "auto" else self.service_tier

    def spec(self) -> TextGenerationSpec:
        """The job that answers this request."""
        return TextGenerationSpec(
            task="text-generation",
            model=self.model,
            inputs=tuple(message.message() for message in self.messages),
            parameters=self.parameters(),
            stream=self.stream,
            priority=PRIORITY_OF_TIER[self.served_tier or "default"],
        )
