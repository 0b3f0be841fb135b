"""OpenAI's request for a response, and the text-generation spec that it stands for."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from api.routes.openai.chat_request import (
    DEFAULT_MAX_TOKENS,
    PRIORITY_OF_TIER,
    TIER,
    AskedTier,
    Metadata,
    ServedTier,
    Tokens,
    Word,
)
from api.routes.openai.field_names import OWN_NAMES, in_openai_words, refuse_as_asked
from api.routes.openai.nulls import NullableSpec
from api.routes.openai.response_items import Item, SentItem, SentMessage, messages_of, of_a_type
from tandem.errors import InvalidRequest
from tandem.specs import GenerationParameters, Name, Spec, TextGenerationSpec
from tandem.specs.base import MAX_INPUT_CHARACTERS, Text
from tandem.specs.generation import MAX_TOP_LOGPROBS
from tandem.specs.response import MAX_ITEMS, AskedResponse
from tandem.specs.response_format import (
    JsonObjectFormat,
    JsonSchema,
    JsonSchemaFormat,
    ResponseFormat,
    TextFormat,
)
from tandem.specs.tools import MAX_TOOLS, Function, FunctionReference, NamedTool, Tool, ToolChoice

LOGPROBS = "message.output_text.logprobs"
FIELD_NAMES = {**OWN_NAMES, "max_new_tokens": "max_output_tokens", "response_format": "text.format"}
"""Fields of a spec that these requests have under another name."""

Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class SchemaFormat(JsonSchema):
    """JSON of a schema: what chat completions have inside `json_schema` stands here by itself."""

    type: Literal["json_schema"]


TextFormatChoice = Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")]


class TextOptions(NullableSpec):
    format: TextFormatChoice = TextFormat(type="text")
    verbosity: Literal["medium"] = "medium"
    """Models have no dial for it: only the middle is taken."""


class FunctionTool(Function):
    """A function that the model may call: what chat completions have inside `function` stands here by itself."""

    type: Literal["function"]

    def tool(self) -> Tool:
        return Tool(type="function", function=Function(**self.model_dump(exclude={"type"})))


class NamedFunction(FunctionReference):
    """One of the tools, by its name."""

    type: Literal["function"]


class AllowedTools(Spec):
    """Only some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: tuple[NamedFunction, ...] = Field(min_length=1, max_length=MAX_TOOLS)


ToolChoiceAsked = Literal["none", "auto", "required"] | NamedFunction | AllowedTools
SentTool = Annotated[FunctionTool, BeforeValidator(of_a_type("function"))]


class StreamOptions(NullableSpec):
    include_obfuscation: bool = False
    """Taken and not used: nothing is added to hide the lengths of tokens."""


class ReasoningOptions(NullableSpec):
    """Models think as they were trained to, in their text; only `none` is taken."""

    effort: Literal["none"] | None = None


class ResponseRequest(NullableSpec):
    """OpenAI's request for a response. What is not here is refused by name."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2-135m-instruct",
                    "instructions": "Answer in one sentence.",
                    "input": "What is the capital of France?",
                    "max_output_tokens": 64,
                }
            ]
        }
    )

    model: Name
    """A base model, or an adapter's id."""
    input: Text | Annotated[tuple[SentItem, ...], Field(min_length=1, max_length=MAX_ITEMS)]
    """A text, or the items of a conversation: messages, calls of functions, and their outputs."""
    instructions: str | None = Field(default=None, max_length=MAX_INPUT_CHARACTERS)
    """What the model is told before the conversation. Those of the previous response are not kept."""
    previous_response_id: Word | None = None
    """A stored response of yours, whose conversation this one continues."""
    max_output_tokens: Tokens | None = None
    """256 by default."""
    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """OpenAI's default; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    # Open Responses has these two, OpenAI's own requests for responses do not.
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Same seed, same text (OpenAI's API has none here: send it through `extra_body`)."""
    text: TextOptions = TextOptions()
    """What the text must look like."""
    tools: tuple[SentTool, ...] = Field(default=(), max_length=MAX_TOOLS)
    """Functions of yours; tools that would run in the service are refused."""
    tool_choice: ToolChoiceAsked = "auto"
    parallel_tool_calls: bool = True
    """Whether an answer may have several calls, where the model decides."""
    max_tool_calls: int | None = Field(default=None, ge=1)
    """Limits calls of tools that run in the service, of which there are none."""
    include: tuple[Include, ...] = ()
    """`message.output_text.logprobs` adds the log-probability of each token; the others name what no response of this
    service has."""
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    """With these log-probabilities: also those of the so many most probable tokens."""
    metadata: Metadata = Field(default={})
    """The job's labels."""
    store: bool = True
    """Whether the response can be retrieved, and continued, afterwards."""
    background: bool = False
    """Answer at once, and let the response be made; it is polled, or streamed, by its id."""
    stream: bool = False
    stream_options: StreamOptions | None = None
    truncation: Literal["disabled", "auto"] = "disabled"
    """A conversation that does not fit the model is refused; with `auto` its oldest turns are left out."""
    reasoning: ReasoningOptions | None = None
    service_tier: AskedTier = "auto"
    """How urgent the answer is: `flex` is the job's priority `low`, `priority` and `fast` are `high`, all else
    `normal`."""
    # Taken and not used: they change nothing about the answer.
    user: Word | None = None
    safety_identifier: Word | None = None
    prompt_cache_key: Word | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    prompt_cache_options: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.background and not self.store:
            raise ValueError("`background` needs `store: true`: the response could not be retrieved")
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` needs `stream: true`")
        if self.top_logprobs and LOGPROBS not in self.include:
            raise ValueError(f"`top_logprobs` needs {LOGPROBS!r} in `include`")
        # A continued conversation is not known yet.
        make = self.parameters if self.previous_response_id else lambda: self._job(())
        refuse_as_asked(make, inputs="input", names=FIELD_NAMES)
        return self

    def parameters(self) -> GenerationParameters:
        """How the job generates its text."""
        return GenerationParameters(
            max_new_tokens=self.max_output_tokens or DEFAULT_MAX_TOKENS,
            temperature=self.temperature,
            top_p=self.top_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            logprobs=LOGPROBS in self.include,
            top_logprobs=self.top_logprobs,
            response_format=_response_format(self.text.format),
        )

    @property
    def served_tier(self) -> ServedTier:
        """The tier that the answer names."""
        return TIER[self.service_tier]

    @property
    def items(self) -> tuple[Item, ...]:
        """The input as items; a text is a message of the user."""
        return (SentMessage(role="user", content=self.input),) if isinstance(self.input, str) else self.input

    def asked(self, history: Sequence[dict[str, JsonValue]] = ()) -> AskedResponse:
        """What the job keeps of this request."""
        request = self.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return AskedResponse(request=request, history=tuple(history))

    def spec(self, history: Sequence[Item] | None = None) -> TextGenerationSpec:
        """The job that answers this request; `history` are the items of the conversation before it.

        Raises InvalidRequest for a conversation or tools that do not fit together, and for a previous response whose
        conversation is not given.
        """
        if self.previous_response_id is not None and history is None:
            raise InvalidRequest(
                "`previous_response_id`: the rows of a batch stand alone; send the conversation in `input`",
                param="previous_response_id",
            )
        try:
            return self._job(history or ())
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InvalidRequest(in_openai_words(said, "input", FIELD_NAMES)) from error

    def _job(self, history: Sequence[Item]) -> TextGenerationSpec:
        instructions = () if self.instructions is None else (SentMessage(role="system", content=self.instructions),)
        tools, choice = self._tools()
        return TextGenerationSpec(
            task="text-generation",
            model=self.model,
            inputs=tuple(messages_of((*instructions, *history, *self.items))),
            parameters=self.parameters(),
            tools=tools,
            tool_choice=choice,
            # None leaves it to the model; where a call is forced, there is then one.
            parallel_tool_calls=None if self.parallel_tool_calls else False,
            truncation=self.truncation,
            stream=self.stream,
            priority=PRIORITY_OF_TIER[self.served_tier],
            metadata=self.metadata,
        )

    def _tools(self) -> tuple[tuple[Tool, ...], ToolChoice]:
        tools = tuple(tool.tool() for tool in self.tools)
        match self.tool_choice:
            case NamedFunction(name=name):
                return tools, NamedTool(type="function", function=FunctionReference(name=name))
            case AllowedTools(mode=mode, tools=named):
                allowed = {tool.name for tool in named}
                if unknown := sorted(allowed - {tool.function.name for tool in tools}):
                    raise InvalidRequest(
                        f"`tool_choice` names {unknown[0]!r}, which is none of the tools", param="tool_choice"
                    )
                return tuple(tool for tool in tools if tool.function.name in allowed), mode
            case mode:
                return tools, mode


def _response_format(chosen: TextFormat | JsonObjectFormat | SchemaFormat) -> ResponseFormat | None:
    if isinstance(chosen, SchemaFormat):
        schema = JsonSchema(**chosen.model_dump(exclude={"type"}, by_alias=True))
        return JsonSchemaFormat(type="json_schema", json_schema=schema)
    return None if isinstance(chosen, TextFormat) else chosen
