"""What every spec shares: names and texts with their limits, scheduling, and what all inference jobs say."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_INPUTS = 2048
"""Inputs in one job (as many as OpenAI's embeddings take)."""
MAX_INPUT_CHARACTERS = 1_000_000
"""Characters in one text: far above any context, low enough to keep a broken producer out of memory."""
MAX_NEW_TOKENS = 131_072
"""Tokens that one job may generate; the model's own context limits further."""
MAX_DELAY_SECONDS = 30 * 86_400.0
"""A job may be put off, or may have until its deadline, for so long."""
MAX_RETRIES = 20
"""Tries after the first one: beyond them somebody should look (dead letters)."""
MAX_METADATA = 16
"""Pairs of a job's own labels (OpenAI's limit), up to 64 and 512 characters each."""
MAX_URL_CHARACTERS = 2048

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,255}$"
"""Model and adapter names: hub ids, `ft:` names and catalogue names; no spaces, no leading punctuation."""
SUFFIX_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"
"""The user's part of an adapter's name (OpenAI allows 64 characters; 40 keep the whole name readable)."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_INPUT_CHARACTERS)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
FileId = Annotated[str, Field(pattern=r"^file-[0-9a-f]{24}$")]


class Spec(BaseModel):
    """Base of all that a user may send: unknown fields are refused by name, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Priority = Literal["low", "normal", "high", "urgent"]
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high", "urgent")
"""In ascending order; the place is the number that the job store keeps."""


class RetryPolicy(Spec):
    """When an attempt that failed for a passing reason is repeated. Other failures are never repeated."""

    max_retries: int = Field(default=3, ge=0, le=MAX_RETRIES)
    """Further attempts after failed ones; then the job has failed, and is a dead letter."""
    backoff_seconds: float = Field(default=2.0, gt=0.0, le=3600.0)
    """Before the first repetition; each further pause is twice as long, and up to half of it is left to chance."""
    max_backoff_seconds: float = Field(default=600.0, gt=0.0, le=86_400.0)


class Webhook(Spec):
    """Where to tell that the job has ended."""

    url: str = Field(min_length=1, max_length=MAX_URL_CHARACTERS)


class Scheduling(Spec):
    """What every job may say about when and how it is run."""

    priority: Priority = "normal"
    """A more urgent job goes first; one that has waited long gets its turn all the same."""
    delay_seconds: float = Field(default=0.0, ge=0.0, le=MAX_DELAY_SECONDS)
    """Start no earlier than so long after submission."""
    not_before: float | None = Field(default=None, ge=0.0)
    """Start no earlier than this time (seconds since the epoch, on the queue server's clock)."""
    deadline_seconds: float | None = Field(default=None, gt=0.0, le=MAX_DELAY_SECONDS)
    """So long after submission the job expires, wherever it is."""
    retry: RetryPolicy = RetryPolicy()
    webhook: Webhook | None = None
    metadata: dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default={}, max_length=MAX_METADATA
    )
    """Labels of yours; they come back with the job and its webhook."""

    @model_validator(mode="after")
    def _starts_at_one_time(self) -> Self:
        if self.delay_seconds and self.not_before is not None:
            raise ValueError("`delay_seconds` and `not_before` both say when to start: give one")
        return self


class InferenceBase(Scheduling):
    """What every inference job says besides its task, inputs and parameters."""

    kind: Literal["inference"] = "inference"
    model: Name | None = None
    """A catalogue name, or an adapter's id, which names its base by itself; None takes the catalogue's default for
    the task."""
    adapter: Name | None = None
    """An adapter of `model`; None runs the base."""
    on_row_error: Literal["fail", "keep"] = "fail"
    """Of many inputs, one that cannot be served: `fail` ends the job with its error, `keep` puts the error in its
    place among the rows."""


TextInputs = Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_INPUTS)]
"""One text, or many: the result then has one row an input, in order."""
