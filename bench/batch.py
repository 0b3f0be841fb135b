"""Many chat requests: as a batch, by a loop of SDK calls, and by the library alone: `python bench/batch.py`.

- The batch: upload, `batches.create`, poll, download; everything is timed, from the first byte to the last answer.
- The loop: 16 threads that call `chat.completions.create` of the unmodified openai SDK, on the same service.
- One `generate()` a row, by transformers, in this process: a sample of the rows in each round.

All have the same rows (a system message in common, a question of each row's own) and the same number of tokens to
write, greedy; each round has new questions, so that nobody finds the keys and values of an earlier one. All sides
take turns in every round, and medians count. Prints a table in Markdown and writes bench-batch.json. `--quick` shows
that everything runs; `--rows` sets the size.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai
import torch
import transformers

from bench.decoder import DTYPE, MODEL, load_plain, text
from bench.generate_peers import check
from bench.machine import describe
from bench.report import keep, show
from bench.rounds import SEED
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService

FILE = Path("bench-batch.json")
THREADS = 16
"""Of the loop: as many as a careful user starts."""
NEW_TOKENS = 16
QUESTION_WORDS = 24
SYSTEM = (
    "You label customers' messages for a shop. Answer with the topic alone: delivery, payment, product, return or "
    "other. Write no explanation and no greeting, and do not repeat the message."
)
POLL_SECONDS = 0.2
BATCH_SECONDS = 3600.0
"""Longest wait for one batch."""
BATCH, LOOP, LIBRARY = "a batch", f"SDK calls, {THREADS} threads", "one `generate()` a row"

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Amount:
    rows: int
    sample: int
    """Rows of a round that the library does, one at a time: its rate does not depend on their number."""
    rounds: int


FULL = Amount(rows=2000, sample=60, rounds=3)
QUICK = Amount(rows=24, sample=2, rounds=1)

Side = Callable[[list[Messages]], float]
"""Does the rows; the seconds that it took."""


def questions(amount: Amount, number: int) -> list[Messages]:
    """The rows of a round."""
    chance = random.Random(f"{SEED} {number}")
    return [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text(chance, QUESTION_WORDS)}]
        for _ in range(amount.rows)
    ]


def body(messages: Messages) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": messages,
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
    }


def by_batch(sdk: openai.OpenAI) -> Side:
    def run(rows: list[Messages]) -> float:
        started = time.perf_counter()
        lines = (
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body(messages) | EVERY_TOKEN,
            }
            for number, messages in enumerate(rows)
        )
        content = "\n".join(json.dumps(line) for line in lines).encode()
        file = sdk.files.create(file=("rows.jsonl", content), purpose="batch")
        batch = sdk.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        while batch.status in ("validating", "in_progress", "finalizing"):
            if time.perf_counter() - started > BATCH_SECONDS:
                raise RuntimeError(f"the batch takes too long: {batch}")
            time.sleep(POLL_SECONDS)  # as its users do
            batch = sdk.batches.retrieve(batch.id)
        if batch.status != "completed" or batch.output_file_id is None:
            raise RuntimeError(f"the batch has not completed: {batch}")
        answers = [json.loads(line) for line in sdk.files.content(batch.output_file_id).text.splitlines()]
        seconds = time.perf_counter() - started
        for answer in answers:
            check(answer["response"]["body"]["usage"]["completion_tokens"], NEW_TOKENS)
        check(len(answers), len(rows))
        return seconds

    return run


EVERY_TOKEN = {"ignore_eos": True}
"""The model's end token ends no text: all sides write the same number of tokens."""


def by_loop(sdk: openai.OpenAI) -> Side:
    def ask(messages: Messages) -> int:
        answer: Any = sdk.chat.completions.create(**body(messages), extra_body=EVERY_TOKEN)
        return int(answer.usage.completion_tokens)

    def run(rows: list[Messages]) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as threads:
            written = list(threads.map(ask, rows))
        seconds = time.perf_counter() - started
        for tokens in written:
            check(tokens, NEW_TOKENS)
        return seconds

    return run


def by_library() -> Side:
    plain, tokenizer = load_plain()
    model: Any = plain  # `generate` comes from a mixin that the class does not declare

    @torch.inference_mode()
    def run(rows: list[Messages]) -> float:
        started = time.perf_counter()
        for messages in rows:
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            check(output.shape[1] - inputs["input_ids"].shape[1], NEW_TOKENS)
        return time.perf_counter() - started

    return run


def measure(amount: Amount) -> dict[str, list[float]]:
    """Rows a second of each side in each round."""
    rates: dict[str, list[float]] = {BATCH: [], LOOP: [], LIBRARY: []}
    order = random.Random(SEED)
    library = by_library()
    with (
        tempfile.TemporaryDirectory() as home,
        EmbeddedService.start(UpOptions(home=Path(home) / "home", port=0, flower=False)) as service,
        openai.OpenAI(base_url=f"{service.api_url}/v1", api_key=service.api_key) as sdk,
    ):
        sides: dict[str, Side] = {BATCH: by_batch(sdk), LOOP: by_loop(sdk), LIBRARY: library}
        by_loop(sdk)(questions(amount, -1)[:1])  # the model is in memory from now on
        for number in range(amount.rounds):
            for place, name in enumerate(order.sample(list(sides), len(sides))):
                # Each side has questions of its own: the engine keeps what it has read.
                rows = questions(amount, number * len(sides) + place)
                rows = rows[: amount.sample] if name == LIBRARY else rows
                seconds = sides[name](rows)
                rates[name].append(len(rows) / seconds)
                print(f"  round {number + 1}, {name}: {len(rows)} rows in {seconds:.1f} s", flush=True)
    return rates


def table(amount: Amount, rates: dict[str, float]) -> None:
    show(
        f"{amount.rows} chat requests, {NEW_TOKENS} tokens each, {MODEL}, {str(DTYPE).removeprefix('torch.')}",
        ("", "rows/s", "the batch against it"),
        [(name, f"{rate:.2f}", f"{rates[BATCH] / rate:.2f}") for name, rate in rates.items()],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows: shows that everything runs")
    parser.add_argument("--rows", type=int, help=f"rows of the batch and the loop in a round (default {FULL.rows})")
    options = parser.parse_args()
    chosen = QUICK if options.quick else FULL
    amount = Amount(options.rows or chosen.rows, chosen.sample, chosen.rounds)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    machine = describe(DTYPE)
    started = time.monotonic()
    rounds = measure(amount)
    rates = {name: statistics.median(each) for name, each in rounds.items()}
    table(amount, rates)
    seconds = time.monotonic() - started
    print(f"\n{seconds:.0f} s in all")
    figures = {"amount": asdict(amount), "rows_per_second": rates, "rounds": rounds}
    keep(FILE, {"machine": machine, "seconds": seconds, **figures}, quick=options.quick)


if __name__ == "__main__":
    main()
