"""Streams that decode while a fine-tuning job trains on the same weights, in one process without the service."""

import gc
import math
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.decoder import MODEL, Request, engine_of, text, to_sequence
from bench.rounds import percentile
from tandem.errors import Cancelled
from tandem.specs import CompletionRow, Hyperparameters, LoraMethod, TrainingRow
from worker.engine.adapters.weights import AdapterWeights
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence
from worker.resident_model import ResidentModel
from worker.training.loop import train
from worker.training.turns import Turns

STREAMS = 16
PROMPT_WORDS = 64
ROW_TOKENS = 128
"""All of them real."""
ROW_PROMPT_WORDS = 8
ROWS = 64
STEP_SECONDS = 30.0
"""Longest time for a step of training, on average."""
FIRST_STEP_SECONDS = 120.0
"""Longest wait for a training to have made its first step."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

    dials: tuple[float, ...]
    """Values of TANDEM_SERVING_SLOWDOWN."""
    settle_steps: int
    """Tokens of each stream before those that count: the controller finds its quantum meanwhile."""
    steps: int
    """Tokens of each stream that count where training may have all the time; `at` has more."""
    alone_steps: int
    """Of training with nothing served."""
    rows_a_step: int
    """Rows of ROW_TOKENS in a micro-batch, which is an optimizer step."""

    def at(self, dial: float) -> "Amount":
        """As long as it takes for the part of the time that the dial leaves to a training to be always the same: at a
        strict setting a step of it takes many seconds."""
        return replace(self, steps=round(self.steps * dial / (dial - 1)))

    @property
    def tokens_a_step(self) -> int:
        return self.rows_a_step * ROW_TOKENS


FULL = Amount(dials=(1.2, 1.35, 1.5, 2.0, 3.0), settle_steps=120, steps=200, alone_steps=12, rows_a_step=4)
QUICK = Amount(dials=(1.5,), settle_steps=10, steps=40, alone_steps=3, rows_a_step=1)


@dataclass(slots=True)
class Served:
    """What the streams got."""

    gaps: list[float] = field(default_factory=list)
    """Seconds between two tokens of one stream."""
    texts: list[list[int]] = field(default_factory=list)
    """The token ids of each."""

    def p95_ms(self) -> float:
        return 1000 * percentile(self.gaps, 0.95)

    def worst_ms(self) -> float:
        return 1000 * max(self.gaps)

    def rate(self) -> float:
        """Tokens a second of one stream."""
        return len(self.gaps) / math.fsum(self.gaps)

    def same_texts(self, other: "Served") -> bool:
        """Whether each stream wrote what it wrote there, as far as both went."""
        return all(
            mine[: len(theirs)] == theirs[: len(mine)] for mine, theirs in zip(self.texts, other.texts, strict=True)
        )


@dataclass(slots=True)
class Trained:
    """When the optimizer steps of a training were over, in seconds of `time.perf_counter()`."""

    steps: list[float] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self) -> None:
        """A step is over."""
        with self._changed:
            self.steps.append(time.perf_counter())
            self._changed.notify_all()

    def wait_for(self, more: int) -> None:
        """Return when so many more steps are over. Raises RuntimeError when it takes too long."""
        with self._changed:
            wanted = len(self.steps) + more
            if not self._changed.wait_for(lambda: len(self.steps) >= wanted, more * STEP_SECONDS):
                raise RuntimeError(f"the training makes no step in {STEP_SECONDS:.0f} s")

    def rate(self, amount: Amount, since: float, until: float) -> float:
        """Tokens a second, over the whole steps between two times."""
        within = [at for at in self.steps if since <= at <= until]
        if len(within) < 2:
            raise RuntimeError(f"{len(within)} steps were over in {until - since:.1f} s: measure for longer")
        return amount.tokens_a_step * (len(within) - 1) / (within[-1] - within[0])


def training_rows() -> list[TrainingRow]:
    """Rows that the tokenizer makes about ROW_TOKENS long, each word being one token, so that little is padded."""
    chance = random.Random("rows")
    words = ROW_TOKENS - ROW_PROMPT_WORDS - 1
    return [
        CompletionRow(prompt=text(chance, ROW_PROMPT_WORDS), completion=" " + text(chance, words))
        for _ in range(ROWS)
    ]


@contextmanager
def training(resident: ResidentModel, turns: Turns, amount: Amount) -> Iterator[Trained]:
    """A training in a thread of its own, from its first step on; it is cancelled at the end of the block."""
    trained, first, stop = Trained(), threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "progress":
            trained.add()
            first.set()

    def check() -> None:
        if stop.is_set():
            raise Cancelled

    def run() -> None:
        assert resident.tokenizer is not None
        with tempfile.TemporaryDirectory() as folder:
            try:
                train(
                    resident.model,
                    resident.tokenizer,
                    base_name=MODEL,
                    training_rows=training_rows(),
                    validation_rows=None,
                    method=LoraMethod(),
                    hyperparameters=Hyperparameters(
                        max_steps=10_000, batch_size=amount.rows_a_step, max_tokens=ROW_TOKENS
                    ),
                    turns=turns,
                    on_event=on_event,
                    check=check,
                    folder=Path(folder),
                )
            except Cancelled:
                pass
            except BaseException as error:  # told to whoever waits for the first step, and at the end
                failed.append(error)
                first.set()

    thread = threading.Thread(target=run, name="training")
    thread.start()
    try:
        if not first.wait(FIRST_STEP_SECONDS):
            raise RuntimeError("the training made no step")
        if not failed:
            yield trained
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


class Streams:
    """STREAMS texts that are written at the same time, each by one of some adapters."""

    def __init__(self, resident: ResidentModel, adapters: list[AdapterWeights], turns: Turns) -> None:
        self._engine: Engine = engine_of(resident)
        self._tokenizer = resident.tokenizer
        self._adapters = adapters
        self._turns = turns

    def decode(self, amount: Amount) -> tuple[Served, float, float]:
        """The gaps of a stream, all of which decode together, and from when to when they were."""
        chance = random.Random("streams")
        tokens = amount.settle_steps + amount.steps
        sequences = [
            to_sequence(
                # Some tokens more than the steps: the first streams decode while the last ones read their prompts.
                Request(text(chance, PROMPT_WORDS), tokens + PROMPT_WORDS),
                self._tokenizer,
                adapter=self._adapters[number % len(self._adapters)],
            )
            for number in range(STREAMS)
        ]
        for sequence in sequences:
            self._engine.submit(sequence)
        while not all(sequence.token_ids for sequence in sequences):
            self._step()
        for _ in range(amount.settle_steps):
            self._step()
        times = [time.perf_counter()]
        for _ in range(amount.steps):
            self._step()
            times.append(time.perf_counter())
        gaps = [later - earlier for earlier, later in pairwise(times)]
        served = Served(gaps, [list(sequence.token_ids) for sequence in sequences])
        self._end(sequences)
        return served, times[0], times[-1]

    def _step(self) -> None:
        with self._turns.serving(beside=True):
            self._engine.step()

    def _end(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            sequence.cancel()
        while self._engine.has_work():
            self._step()


def as_in_a_worker() -> None:
    """What imports and loading have made is never collected, as in a worker that has started."""
    gc.collect()
    gc.freeze()
