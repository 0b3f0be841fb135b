"""What an engine is doing and has done, in numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Occupancy:
    """How full an engine is: for metrics, and for proof that nothing leaks."""

    waiting: int
    running: int
    free_sequence_slots: int
    used_adapters: int


@dataclass
class EngineCounts:
    """What an engine has done since it began."""

    steps: int = 0
    """Forwards."""
    sequences: int = 0
    """Sequences admitted; one that was parked and came back counts once."""
    prompt_tokens: int = 0
    """Of their prompts."""
    reused_tokens: int = 0
    """Of these, whose keys and values were there already."""
    generated_tokens: int = 0
    wait_seconds: float = 0.0
    """Sum over the sequences of the time that they waited for a slot."""
    parked: int = 0
    """Times that a sequence gave its slot to a more urgent one."""
    adapter_loads: int = 0
    """Adapters copied into a slot of the bank."""
