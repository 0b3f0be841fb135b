"""Throughput of pure decoding against the number of sequences, beside what the machine could do at most."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.chart import Line, draw
from bench.decoder import (
    DTYPE,
    MODEL,
    Request,
    engine_of,
    load_resident,
    pure_decode,
    text,
    to_sequence,
)
from bench.machine import gemm_flops_per_second, memory_bytes_per_second
from bench.report import show
from bench.rounds import Side, Work, median_rate, take_turns

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "images" / "engine-throughput.svg"
PROMPT_WORDS = 32
SLOT_TOKENS = 256
"""More than any sequence here has."""
SPARE_TOKENS = 64
"""Of each sequence beyond the steps: the first ones decode while the last ones read their prompts."""


@dataclass(frozen=True, slots=True)
class Amount:
    rounds: int
    sequences: tuple[int, ...]
    steps: int


FULL = Amount(rounds=3, sequences=(1, 2, 4, 8, 16, 32, 64, 128), steps=16)
QUICK = Amount(rounds=1, sequences=(1, 2, 4), steps=2)


def measure(amount: Amount) -> dict[str, Any]:
    """Output tokens a second by the number of sequences, with the machine's limits."""
    resident = load_resident(sequence_slots=max(amount.sequences), slot_tokens=SLOT_TOKENS)
    parameters = sum(parameter.numel() for parameter in resident.model.parameters())
    # Not `resident.bytes`: a step reads either the weights or their packed copies.
    weights_bytes = sum(parameter.nbytes for parameter in resident.model.parameters())
    memory, gemm = memory_bytes_per_second(), gemm_flops_per_second(DTYPE)

    def side(count: int) -> Side:
        def run(number: int) -> Work:
            chance = random.Random(f"{count} {number}")
            asked = [Request(text(chance, PROMPT_WORDS), amount.steps + SPARE_TOKENS) for _ in range(count)]
            sequences = [to_sequence(request, resident.tokenizer) for request in asked]
            return pure_decode(engine_of(resident), sequences, steps=amount.steps)

        return run

    works = take_turns({str(count): side(count) for count in amount.sequences}, amount.rounds)
    figures = {
        "tokens_per_second": {count: median_rate(done) for count, done in works.items()},
        "weights_bytes": weights_bytes,
        "parameters": parameters,
        "memory_bytes_per_second": memory,
        "gemm_flops_per_second": gemm,
        # A step reads every weight once, whatever the number of rows.
        "steps_per_second_by_memory": memory / weights_bytes,
        # Each row is multiplied with every weight: a product and a sum.
        "tokens_per_second_by_gemm": gemm / (2 * parameters),
    }
    _table(figures)
    return figures


def picture(figures: dict[str, Any]) -> None:
    """Draw the curve with its limits for the documents."""
    rates = {int(count): rate for count, rate in figures["tokens_per_second"].items()}
    by_memory, by_gemm = figures["steps_per_second_by_memory"], figures["tokens_per_second_by_gemm"]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(
        draw(
            f"Pure decoding, {MODEL}, {str(DTYPE).removeprefix('torch.')}",
            across="sequences in the batch",
            upward="output tokens/s",
            lines=(
                Line("memory: all weights once a step", {count: count * by_memory for count in rates}, "#b45309"),
                Line("arithmetic: large products", dict.fromkeys(rates, by_gemm), "#64748b"),
                Line("Tandem's engine", rates, "#2563eb", is_measured=True),
            ),
        ),
        encoding="utf-8",
    )
    print(f"\ndrawn in {PICTURE.name}")


def _table(figures: dict[str, Any]) -> None:
    print(
        f"\nMemory {figures['memory_bytes_per_second'] / 1e9:.1f} GB/s, "
        f"{str(DTYPE).removeprefix('torch.')} products {figures['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s, "
        f"weights {figures['weights_bytes'] / 1e6:.0f} MB."
    )
    one = figures["tokens_per_second"]["1"]
    rows = []
    for count, rate in figures["tokens_per_second"].items():
        by_memory = int(count) * figures["steps_per_second_by_memory"]
        limit = min(by_memory, figures["tokens_per_second_by_gemm"])
        rows.append(
            (count, f"{rate:.0f}", f"{rate / one:.2f}", f"{int(count) / rate * 1000:.1f}", f"{rate / limit:.2f}")
        )
    show(
        "Throughput against the number of sequences that decode together",
        ("sequences", "output tokens/s", "against one", "a step, ms", "of the nearer limit"),
        rows,
    )
