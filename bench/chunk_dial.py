"""The dial between even texts and fast reading: `chunk_tokens`, the tokens of prompts in a step with decoding rows.

Streams decode while one long prompt after the other arrives: as soon as one is answered, the next is there.
"""

import random
import time
from dataclasses import dataclass, field
from typing import Any

from bench.decoder import Request, engine_of, load_resident, text, to_sequence
from bench.report import show
from bench.rounds import SEED, Work, median_rate, percentile
from worker.engine.sequence import Sequence
from worker.resident_model import ResidentModel

STREAMS = 8
STREAM_WORDS = 16
PROMPT_WORDS = 400
ANSWER_TOKENS = 4
"""Of a long prompt: enough that the next one does not begin in the same step."""
SLOTS = 16
SLOT_TOKENS = 1024
"""More than any sequence here has."""


@dataclass(frozen=True, slots=True)
class Amount:
    rounds: int
    chunks: tuple[int, ...]
    stream_tokens: int


FULL = Amount(rounds=3, chunks=(32, 64, 128, 256, 512), stream_tokens=36)
QUICK = Amount(rounds=1, chunks=(256, 512), stream_tokens=6)


@dataclass(slots=True)
class Seen:
    """With one setting, over all rounds."""

    gaps: list[float] = field(default_factory=list)
    """Seconds between two tokens of a stream."""
    prompt_waits: list[float] = field(default_factory=list)
    """Seconds from a long prompt's arrival to its first token."""
    works: list[Work] = field(default_factory=list)
    """Tokens read and written, streams and prompts together."""


def measure(amount: Amount) -> dict[str, Any]:
    """By setting: milliseconds between tokens and to a prompt's first, tokens a second read and written."""
    residents = {
        chunk: load_resident(chunk_tokens=chunk, sequence_slots=SLOTS, slot_tokens=SLOT_TOKENS)
        for chunk in amount.chunks
    }
    seen = {chunk: Seen() for chunk in amount.chunks}
    order = random.Random(SEED)
    for number in range(amount.rounds):
        for chunk in order.sample(amount.chunks, len(amount.chunks)):
            _one_round(residents[chunk], seen[chunk], amount.stream_tokens, random.Random(f"chunk {number}"))
            print(f"  round {number + 1}, {chunk}: {seen[chunk].works[-1].seconds:.1f} s", flush=True)
    figures = {str(chunk): _figures(what) for chunk, what in seen.items()}
    show(
        f"{STREAMS} streams decode while prompts of {PROMPT_WORDS} tokens arrive one after the other",
        (
            "`chunk_tokens`",
            "between tokens p50, ms",
            "p95, ms",
            "a prompt's first token p50, ms",
            "tokens read and written/s",
        ),
        [
            (
                chunk,
                f"{value['between_p50_ms']:.0f}",
                f"{value['between_p95_ms']:.0f}",
                f"{value['prompt_first_p50_ms']:.0f}",
                f"{value['tokens_per_second']:.0f}",
            )
            for chunk, value in figures.items()
        ],
    )
    return figures


def _one_round(resident: ResidentModel, seen: Seen, stream_tokens: int, chance: random.Random) -> None:
    engine = engine_of(resident)

    def submit(words: int, tokens: int) -> Sequence:
        sequence = to_sequence(Request(text(chance, words), tokens), resident.tokenizer)
        engine.submit(sequence)
        return sequence

    streams = [submit(STREAM_WORDS, stream_tokens) for _ in range(STREAMS)]
    while not all(stream.token_ids for stream in streams):
        engine.step()
    before = _tokens(streams)
    started = last = arrived = time.perf_counter()
    prompts = [submit(PROMPT_WORDS, ANSWER_TOKENS)]
    while not all(stream.future.done() for stream in streams):
        decoding = sum(not stream.future.done() for stream in streams)
        had_answer = bool(prompts[-1].token_ids)
        engine.step()
        now = time.perf_counter()
        seen.gaps += [now - last] * decoding
        last = now
        if prompts[-1].token_ids and not had_answer:
            seen.prompt_waits.append(now - arrived)
        if prompts[-1].future.done():
            prompts.append(submit(PROMPT_WORDS, ANSWER_TOKENS))
            arrived = now
    seen.works.append(Work(_tokens(streams) + _tokens(prompts) - before, time.perf_counter() - started))
    prompts[-1].cancel()
    while engine.has_work():
        engine.step()


def _tokens(sequences: list[Sequence]) -> int:
    """Read and written."""
    return sum(sequence.prefilled + len(sequence.token_ids) for sequence in sequences)


def _figures(seen: Seen) -> dict[str, float]:
    if not seen.prompt_waits:
        raise RuntimeError("no prompt had its first token while the streams decoded: give them more tokens")
    return {
        "between_p50_ms": percentile(seen.gaps, 0.5) * 1000,
        "between_p95_ms": percentile(seen.gaps, 0.95) * 1000,
        "prompt_first_p50_ms": percentile(seen.prompt_waits, 0.5) * 1000,
        "tokens_per_second": median_rate(seen.works),
    }
