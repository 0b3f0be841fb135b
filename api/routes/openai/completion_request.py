"""OpenAI's completion request: plain prompts, without a chat template."""

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from api.routes.openai.chat_request import SamplingRequest
from api.routes.openai.field_names import refuse_as_asked
from tandem.specs import Name, TextGenerationSpec
from tandem.specs.base import MAX_INPUT_CHARACTERS, MAX_NEW_TOKENS, Text
from tandem.specs.generation import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    GenerationParameters,
    Prompts,
    Tokens,
    form_of_inputs,
)
from tandem.specs.response_format import ResponseFormat

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this route."""


def _form(value: Any) -> str:
    """Messages are none of the forms here: they are refused as what is no text."""
    form = form_of_inputs(value)
    return "(text)" if form == "(messages)" else form


PromptInput = Annotated[
    Annotated[Text, Tag("(text)")] | Annotated[Tokens, Tag("(tokens)")] | Annotated[Prompts, Tag("(prompts)")],
    Discriminator(_form),
]


class CompletionRequest(SamplingRequest):
    """OpenAI's completion request. What is not here is refused by name."""

    model: Annotated[Name, Field(examples=["smollm2-135m-instruct"])]
    """A base model, or an adapter's id."""
    prompt: Annotated[PromptInput, Field(examples=["The capital of France is"])]
    """A text, several, the token ids of one (by the model's own tokenizer), or of several."""
    max_tokens: int = Field(default=DEFAULT_MAX_TOKENS, ge=0, le=MAX_NEW_TOKENS)
    """0 needs `echo`: then the prompt is all of the text."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    """Tell each token's log-probability, and those of so many most probable ones (OpenAI's limit is 5)."""
    echo: bool = False
    """Put the prompt before the text; with `logprobs` its tokens are told as well."""
    suffix: str | None = Field(default=None, max_length=MAX_INPUT_CHARACTERS)
    """What comes after the text, for models that were trained to fill gaps."""
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    """Write so many texts, and answer with the `n` whose tokens are the most probable on average."""
    response_format: ResponseFormat | None = None
    """What the text must look like; not OpenAI's on this route."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"`best_of` ({self.best_of}) is less than `n` ({self.n}): raise it, or leave it out")
        if self.stream and self.candidates > self.n:
            raise ValueError("`best_of` is chosen when all texts are complete: ask without `stream`, or leave it out")
        if self.echo and self.suffix is not None:
            raise ValueError("`echo` and `suffix` exclude each other, since the text lies between the two; give one")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens` is 0, so that there is nothing to answer; raise it, or set `echo`")
        refuse_as_asked(lambda: self.job_spec, inputs="prompt")
        return self

    @property
    def candidates(self) -> int:
        """Texts that are written for each prompt."""
        return self.n if self.best_of is None else self.best_of

    def spec(self) -> TextGenerationSpec:
        """The job that answers this request, with `candidates` choices for each prompt."""
        return self.job_spec

    @cached_property
    def job_spec(self) -> TextGenerationSpec:
        parameters = {
            **self.sampling(),
            "n": self.candidates,
            "max_new_tokens": self.max_tokens,
            "logprobs": self.logprobs is not None or self.candidates > self.n,
            "top_logprobs": self.logprobs or 0,
            "prompt_logprobs": self.echo and self.logprobs is not None,
            "return_full_text": self.echo,
            "suffix": self.suffix,
            "response_format": self.response_format,
        }
        return TextGenerationSpec(
            task="text-generation",
            model=self.model,
            inputs=self.prompt,
            parameters=GenerationParameters(**parameters),
            stream=self.stream,
        )
