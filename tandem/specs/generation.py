"""text-generation: text or chat in, text out."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tandem.specs.base import MAX_INPUT_CHARACTERS, MAX_NEW_TOKENS, InferenceBase, Spec, Text
from tandem.specs.response_format import ResponseFormat

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

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
LogitBias = Annotated[dict[TokenId, Annotated[float, Field(ge=-100.0, le=100.0)]], Field(max_length=MAX_LOGIT_BIASES)]


class ChatMessage(Spec):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(max_length=MAX_INPUT_CHARACTERS)


class GenerationParameters(Spec):
    """How tokens are chosen, and when generation ends. Greedy unless a temperature is given.

    Names and meanings are those of OpenAI, transformers and vLLM. Biases and penalties come first, then temperature,
    `top_k`, `top_p` and `min_p`, as in transformers.
    """

    max_new_tokens: int = Field(default=256, ge=1, le=MAX_NEW_TOKENS)
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
    return_full_text: bool = False
    """Put the prompt before the generated text (plain prompts only)."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"`min_new_tokens` ({self.min_new_tokens}) is more than `max_new_tokens` ({self.max_new_tokens}): "
                "lower the one or raise the other"
            )
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs: true`")
        if self.logprobs and self._logprobs > MAX_LOGPROBS:
            raise ValueError(
                f"`logprobs` asks for up to {self._logprobs} log-probabilities (`n` times `max_new_tokens` times "
                f"`top_logprobs` + 1); at most {MAX_LOGPROBS} are told: lower one of these"
            )
        return self

    @property
    def _logprobs(self) -> int:
        return self.n * self.max_new_tokens * (self.top_logprobs + 1)


class TextGenerationSpec(InferenceBase):
    """Text or chat in, text out, in the continuous batch."""

    task: Literal["text-generation"]
    inputs: Text | Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]
    parameters: GenerationParameters = GenerationParameters()
    stream: bool = False
    """Emit every token as an event of the job while it runs."""
