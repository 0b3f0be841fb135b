"""Prompts with a beginning in common, with and without the use of each other's keys and values."""

import random
from dataclasses import dataclass
from typing import Any

from bench.decoder import Request, engine_of, load_resident, run_together, text, to_sequence
from bench.report import show
from bench.rounds import Side, Work, median_rate, take_turns
from worker.resident_model import ResidentModel

OWN_WORDS = 20
ON, OFF = "reuse on (`owner`)", "reuse off"


@dataclass(frozen=True, slots=True)
class Amount:
    rounds: int
    prompts: int
    shared_words: int
    new_tokens: int


FULL = Amount(rounds=3, prompts=32, shared_words=500, new_tokens=16)
QUICK = Amount(rounds=1, prompts=3, shared_words=60, new_tokens=2)


def measure(amount: Amount) -> dict[str, Any]:
    """Output tokens a second of both, what share of the prompts was reused, and what the slots take."""
    residents = {ON: load_resident(kv_reuse="owner"), OFF: load_resident(kv_reuse="off")}

    def side(resident: ResidentModel) -> Side:
        def run(number: int) -> Work:
            chance = random.Random(f"reuse {number}")  # another beginning in each round
            shared = text(chance, amount.shared_words)
            asked = [Request(f"{shared} {text(chance, OWN_WORDS)}", amount.new_tokens) for _ in range(amount.prompts)]
            return run_together(engine_of(resident), [to_sequence(request, resident.tokenizer) for request in asked])

        return run

    works = take_turns({name: side(resident) for name, resident in residents.items()}, amount.rounds)
    rates = {name: median_rate(done) for name, done in works.items()}
    shares = {
        name: engine_of(resident).counts.reused_tokens / engine_of(resident).counts.prompt_tokens
        for name, resident in residents.items()
    }
    show(
        f"{amount.prompts} prompts at once with the same first {amount.shared_words} words, "
        f"{amount.new_tokens} tokens out",
        ("", "output tokens/s", "against off", "of the prompts' tokens, reused"),
        [(name, f"{rate:.0f}", f"{rate / rates[OFF]:.2f}", f"{shares[name]:.0%}") for name, rate in rates.items()],
    )
    return {"tokens_per_second": rates, "reused_share": shares, "memory": _memory(residents[ON])}


def _memory(resident: ResidentModel) -> dict[str, int]:
    engine = engine_of(resident)
    slots = engine.occupancy.free_sequence_slots
    memory = {
        "slots": slots,
        "slot_tokens": engine.max_context,
        "kv_bytes": engine.kv_bytes,
        "token_bytes": engine.kv_bytes // (slots * engine.max_context),
    }
    print(
        f"\nKeys and values: {memory['token_bytes']:,} bytes a token, {slots} slots of {engine.max_context:,} tokens"
        f", {engine.kv_bytes / 1e9:.2f} GB if all are full."
    )
    return memory
