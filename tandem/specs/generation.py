"""text-generation: text or chat in, text out."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from tandem.specs.base import MAX_INPUT_CHARACTERS, MAX_NEW_TOKENS, InferenceBase, Spec, Text
from tandem.specs.response import AskedResponse
from tandem.specs.response_format import ResponseFormat
from tandem.specs.tools import MAX_CALL_ID_CHARACTERS, MAX_CALLS, MAX_TOOLS, NamedTool, Tool, ToolCall, ToolChoice

MAX_MESSAGES = 2048
"""Messages in one chat prompt."""
MAX_STOP_STRINGS = 16
"""Stop strings of one job (OpenAI takes 4; vLLM's users send more)."""
MAX_STOP_CHARACTERS = 256
"""Characters in one stop string: they bound how much text is held back while streaming."""
MAX_STOP_TOKENS = 64
"""Stop tokens of one job: more than the special tokens that a chat model ends with."""
MAX_LOGIT_BIASES = 1024
"""Tokens with a bias in one job: enough for a list of words, little beside the prompt's limit."""
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
"""Factors on logits, 1 being neutral: beyond them only the most or least repeated tokens are ever chosen."""
MAX_CHOICES = 16
"""Texts for one prompt: each takes a slot in the batch."""
MAX_TOP_LOGPROBS = 20
"""Alternatives told in each place (OpenAI's limit)."""
MAX_LOGPROBS = 131_072
"""Log-probabilities in one result. Each takes about 100 bytes of JSON, so that a result stays near 13 MB."""

MAX_TOP_K = 1_000_000
"""More tokens than any vocabulary has."""

MAX_PROMPTS = 128
"""Prompts of one job: each is a sequence of its own in the batch, or several with `n`."""
MAX_PROMPT_TOKENS = 131_072
"""Token ids of one prompt; the model's own context limits further."""

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
LogitBias = Annotated[dict[TokenId, Annotated[float, Field(ge=-100.0, le=100.0)]], Field(max_length=MAX_LOGIT_BIASES)]


def is_missing(value: object) -> bool:
    """Whether a member of a message is left out where the message is shown."""
    return not value


class ChatMessage(Spec):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(max_length=MAX_INPUT_CHARACTERS)
    """Of an assistant that only calls functions it may be missing or null."""
    tool_calls: tuple[ToolCall, ...] = Field(default=(), max_length=MAX_CALLS, exclude_if=is_missing)
    """The functions that the assistant asked for."""
    tool_call_id: str | None = Field(
        default=None, min_length=1, max_length=MAX_CALL_ID_CHARACTERS, exclude_if=is_missing
    )
    """Of a `tool` message: the call that it answers."""
    name: str | None = Field(default=None, min_length=1, max_length=64, exclude_if=is_missing)
    """Who speaks, where a chat template tells speakers apart; of a `tool` message, the function."""

    @model_validator(mode="before")
    @classmethod
    def _with_a_content(cls, message: Any) -> Any:
        """Chat templates join texts, and know no message without one."""
        if isinstance(message, dict) and message.get("tool_calls") and message.get("content") is None:
            return {**message, "content": ""}
        return message

    @model_validator(mode="after")
    def _is_its_roles(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"`tool_calls` are the assistant's; this message is of the role {self.role!r}")
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError(f"`tool_call_id` is of a `tool` message; this one is of the role {self.role!r}")
        return self

    def for_template(self) -> dict[str, Any]:
        """As chat templates read it: what the message does not have is left out."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        return message


class GenerationParameters(Spec):
    """How tokens are chosen, and when generation ends. Greedy unless a temperature is given.

    Names and meanings are those of OpenAI, transformers and vLLM. Biases and penalties come first, then temperature,
    `top_k`, `top_p` and `min_p`, as in transformers.
    """

    max_new_tokens: int = Field(default=256, ge=0, le=MAX_NEW_TOKENS)
    """0 needs `return_full_text`: then the prompt is all of the text."""
    min_new_tokens: int = Field(default=0, ge=0, le=MAX_NEW_TOKENS)
    """No end token, stop token or stop string ends the text before it has so many tokens."""
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """0 is greedy: the most probable token each time."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Draw among the fewest most probable tokens that together have this probability."""
    top_k: int = Field(default=0, ge=0, le=MAX_TOP_K)
    """Draw among so many most probable tokens; 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Draw among tokens that have at least this share of the most probable one's probability."""
    repetition_penalty: float = Field(default=1.0, ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)
    """Divides a logit above 0, and multiplies one below 0, of every token of the prompt and of the text so far."""
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Taken once from the logit of every token that the text so far has."""
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Taken from a token's logit as often as the text so far has the token."""
    logit_bias: LogitBias = Field(default={})
    """Added to tokens' logits, by token id; -100 as good as forbids a token, 100 forces it."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Same seed, same text, whatever else runs; None draws anew each time."""
    stop: tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)], ...] = Field(
        default=(), max_length=MAX_STOP_STRINGS
    )
    """Generation ends before the first of these strings; it is not part of the text."""
    stop_token_ids: tuple[TokenId, ...] = Field(default=(), max_length=MAX_STOP_TOKENS)
    """Tokens that end the text, besides the model's own end tokens; they are not part of the text."""
    response_format: ResponseFormat | None = None
    """What the text must look like; None is any text."""
    ignore_eos: bool = False
    """The model's end tokens do not end the text: for benchmarks, which need texts of one length."""
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    """Texts for one prompt, each drawn by a seed of its own that follows from `seed`; at temperature 0 they are the
    same."""
    logprobs: bool = False
    """Also tell each token's log-probability, by the model alone: before biases, penalties, temperature and cuts."""
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    """With `logprobs`: in every place also the so many most probable tokens."""
    prompt_logprobs: bool = False
    """With `logprobs`: also tell those of the prompt's tokens (plain prompts only)."""
    return_full_text: bool = False
    """Put the prompt before the generated text (plain prompts only)."""
    suffix: str | None = Field(default=None, max_length=MAX_INPUT_CHARACTERS)
    """What comes after the text: the model writes what lies between it and the prompt. For models that were trained
    to fill gaps, whose tokenizers have tokens for it."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"`min_new_tokens` ({self.min_new_tokens}) is more than `max_new_tokens` ({self.max_new_tokens}): "
                "lower the one or raise the other"
            )
        if self.max_new_tokens == 0 and not self.return_full_text:
            raise ValueError("`max_new_tokens` is 0, so that nothing is written; raise it, or set `return_full_text`")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs: true`")
        if self.prompt_logprobs and not self.logprobs:
            raise ValueError("`prompt_logprobs` needs `logprobs: true`")
        if self.told_logprobs > MAX_LOGPROBS:
            raise ValueError(
                f"`logprobs` asks for up to {self.told_logprobs} log-probabilities (`n` times `max_new_tokens` times "
                f"`top_logprobs` + 1); at most {MAX_LOGPROBS} are told: lower one of these"
            )
        return self

    @property
    def told_logprobs(self) -> int:
        """Log-probabilities that a result may have for one prompt."""
        return self.n * self.max_new_tokens * (self.top_logprobs + 1) if self.logprobs else 0


Tokens = Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_PROMPT_TOKENS)]
Messages = Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]


def form_of_inputs(value: Any) -> str:
    """Which form of inputs a value is meant to be. Its name is in brackets, so that no error takes it for a field."""
    if isinstance(value, list | tuple) and value:
        if isinstance(value[0], int):
            return "(tokens)"
        return "(prompts)" if isinstance(value[0], str | list | tuple) else "(messages)"
    return "(messages)" if isinstance(value, list | tuple) else "(text)"


Prompt = Annotated[Annotated[Text, Tag("(text)")] | Annotated[Tokens, Tag("(tokens)")], Discriminator(form_of_inputs)]
"""A text, or the token ids of one: nothing is put around them."""
Prompts = Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=MAX_PROMPTS)]
Inputs = Annotated[
    Annotated[Text, Tag("(text)")]
    | Annotated[Messages, Tag("(messages)")]
    | Annotated[Tokens, Tag("(tokens)")]
    | Annotated[Prompts, Tag("(prompts)")],
    Discriminator(form_of_inputs),
]


class TextGenerationSpec(InferenceBase):
    """Text or chat in, text out, in the continuous batch."""

    task: Literal["text-generation"]
    inputs: Inputs
    """A text, the messages of a chat, the token ids of a text, or several texts (each a string or its token ids). Of
    several, the result has `parameters.n` choices each, one after another."""
    parameters: GenerationParameters = GenerationParameters()
    tools: tuple[Tool, ...] = Field(default=(), max_length=MAX_TOOLS)
    """The functions that the model of a chat may ask to be called; its chat template tells it of them."""
    tool_choice: ToolChoice = "auto"
    """`auto` leaves it to the model; `none` does not tell it of the tools; else its answer is held to be a call."""
    parallel_tool_calls: bool | None = None
    """Whether one answer may have several calls; None allows them where the model decides (`auto`)."""
    truncation: Literal["disabled", "auto"] = "disabled"
    """`auto`: a chat that leaves no room for `max_new_tokens` (or half of the context, if they are more) loses its
    oldest turns until it does; system messages and the last turn stay. `disabled`: without any room it is refused."""
    stream: bool = False
    """Emit every token as an event of the job while it runs."""
    response: AskedResponse | None = None
    """Of a job that `POST /v1/responses` has made: what the response shows besides the job."""

    @model_validator(mode="after")
    def _uses_tools_and_turns_of_a_chat(self) -> Self:
        if self.tools and not self.is_chat:
            raise ValueError("`tools` are for chats; send messages, or leave `tools` out")
        if self.tool_choice not in ("auto", "none") and not self.tools:
            raise ValueError("`tool_choice` asks for a call, but there are no `tools`: give some, or leave it out")
        if self.truncation == "auto" and not self.is_chat:
            raise ValueError("`truncation: auto` drops the oldest turns of a chat; send messages, or leave it out")
        names = [tool.function.name for tool in self.tools]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"`tools` has two functions named {twice!r}; rename one")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(
                f"`tool_choice` names {self.tool_choice.function.name!r}, which is none of the tools "
                f"({', '.join(names)})"
            )
        return self

    @model_validator(mode="after")
    def _is_one_text_with_its_prompt(self) -> Self:
        asked = len(self.prompts) * self.parameters.told_logprobs
        if asked > MAX_LOGPROBS:
            raise ValueError(
                f"`logprobs` asks for up to {asked} log-probabilities (for {len(self.prompts)} inputs); at most "
                f"{MAX_LOGPROBS} are told: send fewer inputs, or lower `max_new_tokens` or `top_logprobs`"
            )
        if self.is_chat:
            for name in ("suffix", "prompt_logprobs"):
                if getattr(self.parameters, name):
                    raise ValueError(f"`parameters.{name}` is for plain prompts; leave it out of a chat")
            if self.parameters.max_new_tokens == 0:
                raise ValueError("`parameters.max_new_tokens` is 0, so that nothing is written; raise it")
        return self

    @property
    def is_chat(self) -> bool:
        return isinstance(self.inputs, tuple) and isinstance(self.inputs[0], ChatMessage)

    @property
    def prompts(self) -> tuple[str | tuple[int, ...] | tuple[ChatMessage, ...], ...]:
        """The inputs one by one, most often one."""
        if isinstance(self.inputs, str) or not isinstance(self.inputs[0], str | tuple):
            return (self.inputs,)
        return self.inputs

    @property
    def offered_tools(self) -> tuple[Tool, ...]:
        """The tools that the model is told of."""
        if self.tool_choice == "none":
            return ()
        if isinstance(self.tool_choice, NamedTool):
            return tuple(tool for tool in self.tools if tool.function.name == self.tool_choice.function.name)
        return self.tools

    @property
    def must_call(self) -> bool:
        """Whether the answer must be a call."""
        return self.tool_choice not in ("auto", "none")
