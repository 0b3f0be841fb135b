"""How the library's `generate()` chooses tokens: one model for all tasks that write text outside the engine."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tandem.specs.base import MAX_NEW_TOKENS, Spec

MAX_BEAMS = 32
"""Beams of one search, and texts returned for one input: each holds a key/value cache of its own."""
MAX_NGRAM = 1024
"""Tokens of an n-gram that may not come twice: beyond it the rule forbids nothing that a model writes."""


class GenerateParameters(Spec):
    """Names follow transformers' GenerationConfig, as huggingface_hub's types do.

    What is None is left to the model's own generation_config.json. (`penalty_alpha` and `num_beam_groups` are not
    here: transformers runs these searches only with code downloaded from the hub.)
    """

    max_new_tokens: int | None = Field(default=None, ge=1, le=MAX_NEW_TOKENS)
    min_new_tokens: int | None = Field(default=None, ge=0, le=MAX_NEW_TOKENS)
    max_length: int | None = Field(default=None, ge=1, le=MAX_NEW_TOKENS)
    """Tokens of the result, of a decoder's prompt too; `max_new_tokens` takes precedence."""
    min_length: int | None = Field(default=None, ge=0, le=MAX_NEW_TOKENS)
    do_sample: bool | None = None
    """Draw tokens by their probability; otherwise the most probable one, or the best beam, is taken."""
    temperature: float | None = Field(default=None, gt=0.0, le=100.0)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    """Draw among so many tokens; 0 keeps all."""
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    typical_p: float | None = Field(default=None, gt=0.0, le=1.0)
    epsilon_cutoff: float | None = Field(default=None, ge=0.0, lt=1.0)
    eta_cutoff: float | None = Field(default=None, ge=0.0, lt=1.0)
    num_beams: int | None = Field(default=None, ge=1, le=MAX_BEAMS)
    num_return_sequences: int | None = Field(default=None, ge=1, le=MAX_BEAMS)
    """Texts for one input; more than one need as many beams, or sampling."""
    early_stopping: bool | Literal["never"] | None = None
    """When a beam search ends: with enough texts, by a heuristic, or (`never`) when no better one can come."""
    length_penalty: float | None = Field(default=None, ge=-100.0, le=100.0)
    repetition_penalty: float | None = Field(default=None, gt=0.0, le=100.0)
    no_repeat_ngram_size: int | None = Field(default=None, ge=0, le=MAX_NGRAM)
    encoder_no_repeat_ngram_size: int | None = Field(default=None, ge=0, le=MAX_NGRAM)
    use_cache: bool | None = None

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        for least, most in (("min_new_tokens", "max_new_tokens"), ("min_length", "max_length")):
            low, high = getattr(self, least), getattr(self, most)
            if low is not None and high is not None and low > high:
                raise ValueError(
                    f"`{least}` ({low}) is more than `{most}` ({high}): lower the one or raise the other"
                )
        return self

    @model_validator(mode="after")
    def _has_texts_to_return(self) -> Self:
        asked, beams = self.num_return_sequences or 1, self.num_beams
        if beams is not None and asked > beams and not self.do_sample:
            raise ValueError(
                f"`num_return_sequences` ({asked}) is more than `num_beams` ({beams}), and a search has one text a "
                "beam: raise `num_beams`, or set `do_sample`"
            )
        return self
