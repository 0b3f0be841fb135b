"""text-generation: text or chat in, text out."""

from typing import Annotated, Literal

from pydantic import Field

from tandem.specs.base import MAX_INPUT_CHARACTERS, MAX_NEW_TOKENS, InferenceBase, Spec, Text

MAX_MESSAGES = 2048
"""Messages in one chat prompt."""
MAX_STOP_STRINGS = 16
"""Stop strings of one job (OpenAI takes 4; vLLM's users send more)."""
MAX_STOP_CHARACTERS = 256
"""Characters in one stop string: they bound how much text is held back while streaming."""


class ChatMessage(Spec):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(max_length=MAX_INPUT_CHARACTERS)


class GenerationParameters(Spec):
    """How tokens are chosen, and when generation ends. Greedy unless a temperature is given."""

    max_new_tokens: int = Field(default=256, ge=1, le=MAX_NEW_TOKENS)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """0 is greedy: the most probable token each time."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    """0 keeps all tokens."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)], ...] = Field(
        default=(), max_length=MAX_STOP_STRINGS
    )
    """Generation ends before the first of these strings; it is not part of the text."""
    return_full_text: bool = False
    """Put the prompt before the generated text (plain prompts only)."""


class TextGenerationSpec(InferenceBase):
    """Text or chat in, text out, in the continuous batch."""

    task: Literal["text-generation"]
    inputs: Text | Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]
    parameters: GenerationParameters = GenerationParameters()
    stream: bool = False
    """Emit every token as an event of the job while it runs."""
