"""The whole service with streams of 8 adapters and a fine-tuning job: what a client sees of both."""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import httpx

from bench.decoder import MODEL, Request, text
from bench.serve_and_train import (
    FIRST_STEP_SECONDS,
    PROMPT_WORDS,
    ROW_TOKENS,
    STREAMS,
    Amount,
    Served,
    Trained,
    training_rows,
)
from tandem import Tandem
from tandem.adapter_archive import pack
from tandem.embedded import UpOptions
from tandem.embedded_service import EmbeddedService
from tandem.home import RunningService

JOB_SECONDS = 600.0
"""Longest wait for a stream to end."""
DIAL = "TANDEM_SERVING_SLOWDOWN"


@dataclass(frozen=True, slots=True)
class Measured:
    """A running service, and the adapters that its streams take."""

    client: Tandem
    adapters: list[str]
    pids: list[int]
    """Of the processes that hold a copy of the model."""

    def serve(self, amount: Amount) -> tuple[Served, float, float]:
        """All streams together: their gaps once the dial has settled, and from when to when these were."""
        chance = random.Random("streams")
        prompts = [text(chance, PROMPT_WORDS) for _ in range(STREAMS)]

        def stream(number: int) -> list[float]:
            request = Request(prompts[number], amount.settle_steps + amount.steps)
            pieces = self.client.stream(
                request.prompt,
                adapter=self.adapters[number % len(self.adapters)],
                parameters=request.parameters,
                timeout=JOB_SECONDS,
            )
            return [time.perf_counter() for _ in pieces]

        with ThreadPoolExecutor(STREAMS) as threads:
            times = [each[amount.settle_steps :] for each in threads.map(stream, range(STREAMS))]
        gaps = [later - earlier for each in times for earlier, later in pairwise(each)]
        return Served(gaps), max(each[0] for each in times), min(each[-1] for each in times)

    @contextmanager
    def train(self, amount: Amount) -> Iterator[Trained]:
        """A fine-tuning job from its first step on, cancelled at the end of the block."""
        rows = [row.model_dump(mode="json") for row in training_rows()]
        trained, first = Trained(), threading.Event()
        job = self.client.finetune(
            MODEL,
            rows,
            hyperparameters={"max_steps": 10_000, "batch_size": amount.rows_a_step, "max_tokens": ROW_TOKENS},
        )

        def follow() -> None:
            for event in self.client.events(job):
                if event.type == "progress":
                    trained.add()
                if event.type == "progress" or event.ends_the_job:
                    first.set()

        reader = threading.Thread(target=follow, name="training-events")
        reader.start()
        try:
            if not first.wait(FIRST_STEP_SECONDS) or not trained.steps:
                raise RuntimeError(f"the training made no step: {job.refresh()}")
            yield trained
        finally:
            job.cancel()
            reader.join()


@contextmanager
def service(folders: list[Path], environment: Mapping[str, str]) -> Iterator[Measured]:
    """One worker that serves and trains on one copy of the weights."""
    with (
        tempfile.TemporaryDirectory() as home,
        EmbeddedService.start(
            UpOptions(home=Path(home) / "home", port=0, flower=False), environment=environment
        ) as running,
        Tandem(running.api_url, running.api_key) as client,
    ):
        where = running.home.running()
        assert where is not None, "it has started"
        yield Measured(client, _add(where, client, folders), _workers(where))


@contextmanager
def two_processes(folders: list[Path]) -> Iterator[Measured]:
    """A worker that only serves and one that only trains, each with a copy of the weights: the usual way."""
    with (
        service(folders, {"TANDEM_ROLES": "inference"}) as measured,
        tempfile.TemporaryFile() as log,
        _worker(measured, log) as trainer,
    ):
        yield Measured(measured.client, measured.adapters, [*measured.pids, trainer])


@contextmanager
def _worker(measured: Measured, log: IO[bytes]) -> Iterator[int]:
    of_the_other = _environment(measured.pids[0])
    process = subprocess.Popen(
        [sys.executable, "-m", "worker"],
        env={**of_the_other, "TANDEM_ROLES": "finetune"},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _environment(pid: int) -> dict[str, str]:
    """A worker's variables, the queue's address with its password among them."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _add(where: RunningService, client: Tandem, folders: list[Path]) -> list[str]:
    """Add the adapters to the service, and have each answer once: it is in its slot then."""
    ids = []
    with httpx.Client(base_url=where.api_url, headers={"authorization": f"Bearer {where.api_key}"}) as http:
        for folder in folders:
            with tempfile.NamedTemporaryFile(suffix=".zip") as archive:
                with Path(archive.name).open("wb") as target:
                    pack(folder, target)
                file = client.upload(archive.name, purpose="adapter").id
            answer = http.post("/v1/adapters", json={"file": file, "base": MODEL, "suffix": folder.name})
            answer.raise_for_status()
            ids.append(answer.json()["id"])
    for adapter in ids:
        list(client.stream("warm up", adapter=adapter, parameters={"max_new_tokens": 2}, timeout=JOB_SECONDS))
    return ids


def _workers(where: RunningService) -> list[int]:
    return [pid for name, pid in where.pids.items() if name.startswith("worker")]


def memory_mb(pids: list[int]) -> float:
    """What the processes take together, a page that several share counted once (PSS), in MB."""
    kilobytes = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024 / 1e6


def quiet_environment(dial: float | None = None) -> dict[str, str]:
    """This process's own settings do not reach the service, but for where its models lie."""
    kept = {"TANDEM_MODELS_DIR": os.environ["TANDEM_MODELS_DIR"]} if "TANDEM_MODELS_DIR" in os.environ else {}
    return kept if dial is None else {**kept, DIAL: str(dial)}
