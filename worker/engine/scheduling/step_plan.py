"""What one step computes, and how the prompts share what it may read."""

from collections.abc import Sequence as Many
from dataclasses import dataclass

from worker.engine.sequence import Sequence


@dataclass(frozen=True)
class PrefillChunk:
    """A part of what a sequence reads before it decodes: its positions `start:end`, virtual ones included."""

    sequence: Sequence
    start: int
    end: int

    @property
    def completes_prompt(self) -> bool:
        """Whether the step's logits give the first generated token."""
        return self.end == self.sequence.context_tokens


@dataclass(frozen=True)
class StepPlan:
    """What one step computes: one token of each decoding sequence, and chunks of prompts."""

    decode: tuple[Sequence, ...]
    """In the order of their slots."""
    chunks: tuple[PrefillChunk, ...]
    """In the order of their admission."""

    @property
    def tokens(self) -> int:
        """Rows of the flattened forward."""
        return len(self.decode) + sum(chunk.end - chunk.start for chunk in self.chunks)

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Every sequence that has a row in this step."""
        return (*self.decode, *(chunk.sequence for chunk in self.chunks))

    @property
    def emitting(self) -> tuple[Sequence, ...]:
        """The sequences that get a token from this step, in the order of their rows."""
        return (*self.decode, *(chunk.sequence for chunk in self.chunks if chunk.completes_prompt))


def share_prompt_budget(reading: Many[Sequence], budget: int) -> tuple[PrefillChunk, ...]:
    """Divide `budget` tokens among sequences that read their prompts, given in the order of their admission.

    Half goes to the most urgent, among equals to the one admitted first, so that the longest prompt moves on in
    every step; the rest to the shortest remainders first, so that short prompts do not wait for long ones.
    """
    if not reading or budget <= 0:
        return ()
    first = max(reading, key=lambda sequence: (sequence.priority, -sequence.admitted))
    remaining = {id(sequence): sequence.context_tokens - sequence.prefilled for sequence in reading}
    shares = dict.fromkeys(remaining, 0)
    shares[id(first)] = min(remaining[id(first)], (budget + 1) // 2)
    budget -= shares[id(first)]
    by_urgency = sorted(reading, key=lambda sequence: (-sequence.priority, remaining[id(sequence)]))
    for sequence in by_urgency:
        more = min(remaining[id(sequence)] - shares[id(sequence)], budget)
        shares[id(sequence)] += more
        budget -= more
    return tuple(
        PrefillChunk(sequence, sequence.prefilled, sequence.prefilled + shares[id(sequence)])
        for sequence in reading
        if shares[id(sequence)]
    )
