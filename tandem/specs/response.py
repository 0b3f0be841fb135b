"""What a job keeps of the request that it answers as a response (`POST /v1/responses`)."""

from pydantic import Field, JsonValue

from tandem.specs.base import Spec

MAX_ITEMS = 4096
"""Items of a conversation: each message of a chat prompt (2,048) is one, and a message of calls is one for each."""


class AskedResponse(Spec):
    """The request as its client sent it, and what it went on from: so that the response can be shown again.

    It is part of the job, so that it is written, kept and forgotten with it.
    """

    request: dict[str, JsonValue]
    """In OpenAI's form."""
    history: tuple[dict[str, JsonValue], ...] = Field(default=(), max_length=MAX_ITEMS)
    """The items of the conversation before it, each with its id."""
