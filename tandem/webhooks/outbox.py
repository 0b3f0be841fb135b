"""What a deliverer is given to deliver: the messages of one kind that are due, and who notes how their tries went."""

from dataclasses import dataclass
from typing import Literal, Protocol

from tandem.webhooks.signature import Signer

Outcome = Literal["delivered", "failed", "given up", "gone"]
"""`failed`: it is tried again. `gone`: the receiver wants no more messages."""


@dataclass(frozen=True, slots=True)
class Due:
    """A message that is to be tried now."""

    key: str
    """Names it in its outbox."""
    tries: int
    """That have failed so far."""


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, where to, and who signs it."""

    id: str
    """The same in every try: a receiver that has seen it need not act again."""
    url: str
    body: str
    signer: Signer


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a try went."""

    outcome: Outcome
    note: str
    """The same in words, for whoever waits for the message."""
    retry_in: float | None = None
    """Seconds until the next try, of one that has failed."""


class Outbox(Protocol):
    """Messages of one kind. Every call may raise QueueUnavailable, and blocks on the queue's server."""

    def take(self, limit: int, lease_seconds: float) -> list[Due]:
        """What is due; for so long nobody else gets it."""

    def message(self, key: str) -> Message | None:
        """What to send; None if there is nothing to send any more."""

    def settle(self, key: str, verdict: Verdict) -> None:
        """Note how a try went."""
