"""Celery over every form of TANDEM_REDIS_URL, as a worker and Flower use it."""

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from celery import Celery
from kombu.simple import SimpleQueue

from tandem.settings import Settings
from tandem.tickets import TASK, create_app

LANE = "tandem.inference.m"
TICKET_SECONDS = 30.0
"""A ticket is taken in milliseconds. After a failover Celery waits some seconds before it connects again."""


def app_of(url: str) -> Celery:
    return create_app(Settings(redis_url=url))


def send_and_receive(app: Celery, text: str) -> str:
    """By a connection of its own: what comes back is what was first in the queue."""
    with app.connection_for_write() as connection:
        messages: SimpleQueue = connection.SimpleQueue("tandem.test")
        try:
            messages.put({"text": text})
            message = messages.get(timeout=TICKET_SECONDS)
            message.ack()
            return str(message.payload["text"])
        finally:
            messages.close()


def ring(app: Celery) -> None:
    """Publish a ticket."""
    with app.connection_for_write() as connection:
        app.send_task(TASK, queue=LANE, connection=connection)


class TicketWorker:
    """A running ticket_worker.py. `lines` are what it printed, in order."""

    def __init__(self, url: str, folder: Path) -> None:
        self._log = folder / "ticket-worker.log"
        self._lines: queue.Queue[str] = queue.Queue()
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", "tests.integration.redis.ticket_worker", LANE),
                env={**os.environ, "TANDEM_REDIS_URL": url},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def next_line(self) -> str:
        try:
            return self._lines.get(timeout=TICKET_SECONDS)
        except queue.Empty:
            raise AssertionError(f"the worker printed nothing more:\n{self.log}") from None

    def __enter__(self) -> Self:
        assert self.next_line() == "ready", self.log
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The program has no drain to test: it ends at once.
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._lines.put(line.strip())
