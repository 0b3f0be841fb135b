"""OpenAI's chat request, and the text-generation spec that it stands for."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from api.routes.openai.chat_message import RequestMessage
from api.routes.openai.field_names import refuse_as_asked
from api.routes.openai.nulls import NullableSpec
from tandem.specs import GenerationParameters, Name, Priority, TextGenerationSpec
from tandem.specs.base import MAX_METADATA, MAX_NEW_TOKENS
from tandem.specs.generation import (
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_REPETITION_PENALTY,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKENS,
    MAX_TOP_K,
    MAX_TOP_LOGPROBS,
    MIN_REPETITION_PENALTY,
    LogitBias,
    TokenId,
)
from tandem.specs.response_format import ResponseFormat
from tandem.specs.tools import MAX_TOOLS, NamedTool, Tool, ToolChoice

DEFAULT_MAX_TOKENS = 256
"""Tokens of an answer if the request names no limit (OpenAI's has none: one client could fill a whole context)."""
MAX_WORD_CHARACTERS = 512
"""Of words that are taken and not used."""

ServedTier = Literal["default", "flex", "priority"]
PRIORITY_OF_TIER: dict[ServedTier, Priority] = {"flex": "low", "default": "normal", "priority": "high"}
AskedTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]
TIER: dict[AskedTier, ServedTier] = {
    "auto": "default",
    "default": "default",
    "scale": "default",
    "flex": "flex",
    "priority": "priority",
    "fast": "priority",
}

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stop = StopString | Annotated[tuple[StopString, ...], Field(max_length=MAX_STOP_STRINGS)]
Tokens = Annotated[int, Field(ge=1, le=MAX_NEW_TOKENS)]
Word = Annotated[str, Field(max_length=MAX_WORD_CHARACTERS)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_METADATA),
]


class StreamOptions(NullableSpec):
    include_usage: bool = False
    """End the stream with a chunk that counts the tokens."""
    include_obfuscation: bool = False
    """Taken and not used: nothing is added to hide the lengths of tokens."""


class AllowedTools(NullableSpec):
    mode: Literal["auto", "required"]
    tools: tuple[NamedTool, ...] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(NullableSpec):
    """Only some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class SamplingRequest(NullableSpec):
    """What OpenAI's chat and completion requests share about how tokens are chosen."""

    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """OpenAI's default; 0 is greedy. A job submitted by POST /v1/jobs is greedy by default."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: Stop | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: LogitBias | None = None
    user: Word | None = None
    """Taken and not used."""
    # Not OpenAI's: vLLM's names, sent through `extra_body`.
    top_k: int = Field(default=0, ge=0, le=MAX_TOP_K)
    """Draw among so many most probable tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Draw among tokens that have at least this share of the most probable one's probability."""
    repetition_penalty: float = Field(default=1.0, ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)
    min_tokens: int = Field(default=0, ge=0, le=MAX_NEW_TOKENS)
    """Nothing ends the text before it has so many tokens."""
    stop_token_ids: tuple[TokenId, ...] = Field(default=(), max_length=MAX_STOP_TOKENS)
    ignore_eos: bool = False
    """The model's end tokens do not end the text."""

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts the tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> dict[str, Any]:
        """The parameters of a job that these are."""
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "seed": self.seed,
            "stop": (self.stop,) if isinstance(self.stop, str) else self.stop or (),
            "stop_token_ids": self.stop_token_ids,
            "n": self.n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "logit_bias": self.logit_bias or {},
            "min_new_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
        }

    @model_validator(mode="after")
    def _streams_what_it_says(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` needs `stream: true`")
        return self


class ChatRequest(SamplingRequest):
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
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: tuple[Tool, ...] = Field(default=(), max_length=MAX_TOOLS)
    """Functions; custom tools are not taken."""
    tool_choice: ToolChoice | AllowedToolsChoice = "auto"
    parallel_tool_calls: bool | None = None
    """Whether an answer may have several calls; by default where the model decides, not where one is forced."""
    service_tier: AskedTier | None = None
    """How urgent the answer is: `flex` is the job's priority `low`, `priority` and `fast` are `high`, all else
    `normal`."""
    metadata: Metadata = Field(default={})
    """The job's labels."""
    modalities: tuple[Literal["text"], ...] = ("text",)
    reasoning_effort: Literal["none"] | None = None
    """Models think as they were trained to; only `none` is taken."""
    verbosity: Literal["medium"] | None = None
    """Only the default is taken: say in a message how long the answer should be."""
    store: Literal[False] | None = None
    """Answers are not kept beyond their job."""
    # Taken and not used: they change nothing about the answer.
    safety_identifier: Word | None = None
    prompt_cache_key: Word | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: dict[str, JsonValue] | None = None
    prediction: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        both = self.max_tokens is not None and self.max_completion_tokens is not None
        if both and self.max_tokens != self.max_completion_tokens:
            raise ValueError("`max_tokens` and `max_completion_tokens` name two limits; give one")
        # What the job's parts refuse together, such as a named tool that is none of the tools.
        refuse_as_asked(lambda: self.job_spec, inputs="messages")
        return self

    @property
    def served_tier(self) -> ServedTier | None:
        """The tier that the answer names, if the request named one."""
        return None if self.service_tier is None else TIER[self.service_tier]

    def parameters(self) -> GenerationParameters:
        """How the job generates its text."""
        return GenerationParameters(
            **self.sampling(),
            max_new_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
            response_format=self.response_format,
        )

    def spec(self) -> TextGenerationSpec:
        """The job that answers this request."""
        return self.job_spec

    @cached_property
    def job_spec(self) -> TextGenerationSpec:
        choice, tools = self.tool_choice, self.tools
        if isinstance(choice, AllowedToolsChoice):
            allowed = {tool.function.name for tool in choice.allowed_tools.tools}
            if unknown := sorted(allowed - {tool.function.name for tool in tools}):
                raise ValueError(f"`tool_choice.allowed_tools` names {unknown[0]!r}, which is none of the tools")
            tools = tuple(tool for tool in tools if tool.function.name in allowed)
            choice = choice.allowed_tools.mode
        return TextGenerationSpec(
            task="text-generation",
            model=self.model,
            inputs=tuple(message.message() for message in self.messages),
            parameters=self.parameters(),
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls,
            stream=self.stream,
            priority=PRIORITY_OF_TIER[self.served_tier or "default"],
            metadata=self.metadata,
        )
