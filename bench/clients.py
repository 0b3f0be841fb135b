"""Clients that each ask, wait for the whole answer and ask again: of the bare engine, and of the whole service."""

import time
from collections import deque
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from bench.decoder import MODEL, Request, to_sequence
from bench.rounds import Work, percentile
from tandem import Tandem
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence


@dataclass(slots=True)
class Answer:
    """When the pieces of one text came, in seconds of `time.perf_counter()`. A piece is a token, almost always."""

    asked: float = field(default_factory=time.perf_counter)
    pieces: list[float] = field(default_factory=list)

    def on_text(self, _piece: str) -> None:
        self.pieces.append(time.perf_counter())


@dataclass(frozen=True, slots=True)
class Load:
    """What so many clients got, and how fast all together."""

    work: Work
    answers: list[Answer]


def waits(loads: Many[Load]) -> dict[str, float]:
    """Milliseconds to the first piece and between pieces, over the answers of all `loads`."""
    answers = [answer for load in loads for answer in load.answers]
    first = [(answer.pieces[0] - answer.asked) * 1000 for answer in answers]
    between = [(later - earlier) * 1000 for answer in answers for earlier, later in pairwise(answer.pieces)]
    return {
        "first_p50_ms": percentile(first, 0.5),
        "first_p95_ms": percentile(first, 0.95),
        "between_p50_ms": percentile(between, 0.5),
        "between_p95_ms": percentile(between, 0.95),
    }


def ask_engine(engine: Engine, tokenizer: Any, requests: Many[Request], clients: int) -> Load:
    """`clients` of them at a time, in this thread, which also makes the engine's steps."""
    started = time.perf_counter()
    waiting, running, answers = deque(requests), list[Sequence](), []
    while waiting or running:
        while waiting and len(running) < clients:
            answers.append(Answer())
            running.append(to_sequence(waiting.popleft(), tokenizer, on_text=answers[-1].on_text))
            engine.submit(running[-1])
        engine.step()
        for sequence in [each for each in running if each.future.done()]:
            sequence.future.result()  # raises what it failed with
            running.remove(sequence)
    return Load(Work(sum(request.new_tokens for request in requests), time.perf_counter() - started), answers)


def ask_service(client: Tandem, requests: Many[Request], clients: int) -> Load:
    """`clients` threads, each of which streams one text after the other."""

    def ask(request: Request) -> Answer:
        answer = Answer()
        for piece in client.stream(request.prompt, model=MODEL, parameters=request.parameters):
            answer.on_text(piece)
        return answer

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        answers = list(threads.map(ask, requests))
    return Load(Work(sum(request.new_tokens for request in requests), time.perf_counter() - started), answers)
