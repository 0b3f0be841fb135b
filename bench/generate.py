"""Many requests of mixed lengths, by the engine and the whole service and by their peers: `python bench/generate.py`.

The peers: transformers' `generate()` one at a time and in static batches of 16 (as they come, and sorted by the
length of the answer, which only a benchmark knows beforehand), transformers' own continuous batching, and llama.cpp
one at a time. All have the same prompts, weights and numbers of tokens, greedy, and take turns in every round; each
round has new words, so that nobody finds keys and values of an earlier one. Slow sides do another part of the
requests in each round. Prints a table in Markdown and writes bench-generate.json. `--quick` tries it in a minute.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers

from bench import llama_cpp
from bench.decoder import (
    DTYPE,
    MODEL,
    Request,
    engine_of,
    load_plain,
    load_resident,
    run_together,
    text,
    to_sequence,
    token_ids,
)
from bench.generate_peers import BATCH, Library, check, wanted_tokens
from bench.machine import describe
from bench.report import keep, show
from bench.rounds import Side, Work, median_rate, take_turns, total_rate
from tandem import Tandem
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService

FILE = Path("bench-generate.json")
SEED = 1
MAX_NEW_TOKENS = 96
JOB_SECONDS = 600.0
"""Longest wait for one job."""
ONE_AT_A_TIME = "`generate()`, one at a time"
AS_THEY_COME = f"`generate()`, batches of {BATCH} as they come"
SORTED = f"`generate()`, batches of {BATCH} sorted by the answer's length"
CONTINUOUS = "transformers' continuous batching"
LLAMA_CPP = "llama.cpp (float16), one at a time"
ENGINE = "Tandem's engine alone"
SERVICE = "Tandem, the whole service"
WHOLE = (CONTINUOUS, ENGINE, SERVICE)
"""Sides that do all requests in a round."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much the whole run measures."""

    requests: int
    rounds: int
    mean_new_tokens: int
    """Beyond the first 8 of an answer."""
    parts: int
    """One at a time, a round does one of so many parts of the requests."""
    continuous_rounds: int
    """Rounds that transformers' continuous batching takes part in: it is slow, and all requests must be in it."""


FULL = Amount(requests=64, rounds=3, mean_new_tokens=36, parts=16, continuous_rounds=2)
QUICK = Amount(requests=6, rounds=1, mean_new_tokens=4, parts=3, continuous_rounds=1)


def workload(amount: Amount, number: int) -> list[Request]:
    """Prompts of 16 to 200 words, answers of 8 to 96 tokens, mixed: each round has the same lengths, other words."""
    lengths, words = random.Random(SEED), random.Random(f"{SEED} {number}")
    return [
        Request(
            text(words, lengths.randint(16, 200)),
            min(MAX_NEW_TOKENS, 8 + int(lengths.expovariate(1 / amount.mean_new_tokens))),
        )
        for _ in range(amount.requests)
    ]


def by_length(requests: list[Request]) -> list[Request]:
    return sorted(requests, key=lambda request: request.new_tokens)


def library_sides(amount: Amount) -> dict[str, Side]:
    """The peers that transformers has."""
    library = Library(*load_plain())

    def batch(number: int, requests: list[Request]) -> list[Request]:
        """Of a round; the last round does what is left."""
        end = None if number == amount.rounds - 1 else (number + 1) * BATCH
        return requests[number * BATCH : end]

    return {
        ONE_AT_A_TIME: lambda number: library.one_at_a_time(part(amount, number)),
        AS_THEY_COME: lambda number: library.static_batches(workload(amount, number)[number * BATCH :][:BATCH]),
        SORTED: lambda number: library.static_batches(batch(number, by_length(workload(amount, number)))),
        CONTINUOUS: lambda number: (
            library.continuous_batching(workload(amount, number)) if number < amount.continuous_rounds else None
        ),
    }


def part(amount: Amount, number: int) -> list[Request]:
    """What is done one at a time in a round: every so many-th request by length, short and long ones alike."""
    return by_length(workload(amount, number))[number :: amount.parts]


def engine_side(amount: Amount) -> Side:
    resident = load_resident()
    engine, tokenizer = engine_of(resident), resident.tokenizer
    return lambda number: run_together(
        engine, [to_sequence(request, tokenizer) for request in workload(amount, number)]
    )


def service_side(amount: Amount, client: Tandem) -> Side:
    """From the first submission to the last result, after the model is resident."""

    def submit(request: Request) -> Any:
        return client.submit("text-generation", request.prompt, model=MODEL, parameters=request.parameters)

    def run(number: int) -> Work:
        requests = workload(amount, number)
        started = time.perf_counter()
        jobs = [submit(request) for request in requests]
        results = [job.wait(timeout=JOB_SECONDS) for job in jobs]
        seconds = time.perf_counter() - started
        for request, result in zip(requests, results, strict=True):
            check(result["completion_tokens"], request.new_tokens)
        return Work(wanted_tokens(requests), seconds)

    submit(Request("warm up", 4)).wait(timeout=JOB_SECONDS)
    return run


@contextmanager
def whole_service() -> Iterator[Tandem]:
    """A client of a service that runs as long as the context."""
    with (
        tempfile.TemporaryDirectory() as home,
        EmbeddedService.start(UpOptions(home=Path(home) / "home", port=0, flower=False)) as service,
        Tandem(service.api_url, service.api_key) as client,
    ):
        yield client


def llama_cpp_side(amount: Amount, stack: ExitStack) -> tuple[Side, str]:
    """The side, and how it runs. Raises PeerMissing."""
    peer, wait = stack.enter_context(llama_cpp.running(os.cpu_count() or 1))
    _, tokenizer = load_plain()

    def run(number: int) -> Work:
        requests = part(amount, number)
        return peer.one_at_a_time(
            [
                {"prompt": token_ids(tokenizer, request.prompt), "new_tokens": request.new_tokens}
                for request in requests
            ]
        )

    return run, wait


def rates(works: Mapping[str, list[Work]]) -> dict[str, float]:
    return {name: (median_rate if name in WHOLE else total_rate)(done) for name, done in works.items()}


def table(amount: Amount, rate: Mapping[str, float]) -> None:
    show(
        f"{amount.requests} requests of mixed lengths, {MODEL}, {str(DTYPE).removeprefix('torch.')}",
        (
            "",
            "output tokens/s",
            "against one at a time",
            "Tandem's engine against it",
            "the whole service against it",
        ),
        [
            (
                name,
                f"{tokens:.1f}",
                f"{tokens / rate[ONE_AT_A_TIME]:.2f}",
                f"{rate[ENGINE] / tokens:.2f}",
                f"{rate[SERVICE] / tokens:.2f}",
            )
            for name, tokens in rate.items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short requests: shows that everything runs")
    quick = parser.parse_args().quick
    amount = QUICK if quick else FULL
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    machine = describe(DTYPE)
    started = time.monotonic()
    missing = {}
    with ExitStack() as stack:
        sides = library_sides(amount)
        try:
            sides[LLAMA_CPP], machine["llama_cpp"] = llama_cpp_side(amount, stack)
        except llama_cpp.PeerMissing as reason:
            missing[LLAMA_CPP] = str(reason)
            print(f"{LLAMA_CPP} is missing: {reason}")
        sides[ENGINE] = engine_side(amount)
        sides[SERVICE] = service_side(amount, stack.enter_context(whole_service()))
        works = take_turns(sides, amount.rounds)
    rate = rates(works)
    table(amount, rate)
    seconds = time.monotonic() - started
    print(f"\n{seconds:.0f} s in all")
    figures = {
        "machine": machine,
        "seconds": seconds,
        "amount": asdict(amount),
        "tokens_per_second": rate,
        "rounds": {name: [asdict(work) for work in done] for name, done in works.items()},
        "missing": missing,
    }
    keep(FILE, figures, quick=quick)


if __name__ == "__main__":
    main()
