"""When a file is deleted by itself, as OpenAI's clients say it."""

from typing import Literal

from pydantic import Field

from tandem.specs.base import Spec

MIN_SECONDS, MAX_SECONDS = 3600, 30 * 86_400
"""An hour to 30 days (OpenAI's limits)."""


class ExpiresAfter(Spec):
    """How long after its creation a file is deleted."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_SECONDS, le=MAX_SECONDS)
