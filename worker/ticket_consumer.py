"""The Celery side of a worker: takes tickets from its lanes and hands each to a pool thread."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, Task
from celery.exceptions import Ignore
from celery.signals import task_postrun

from tandem.job import JobState
from tandem.tickets import TASK
from worker.executor import Ended

log = logging.getLogger(__name__)

WAKE_SECONDS = (0.005, 0.02)
"""When the event loop is woken after a job, so that it takes the next ticket at once: without it, up to 600 ms pass
between a freed thread and the next ticket (early acknowledgement with prefetch disabled)."""


class JobFailed(Exception):
    """A job ended as failed; raised for Celery's monitors alone, so that Flower shows it so."""


class TicketConsumer:
    def __init__(
        self,
        app: Celery,
        *,
        hostname: str,
        threads: int,
        on_ticket: Callable[[str, str], Ended | None],
    ) -> None:
        self._app = app
        self._hostname = hostname
        self._threads = threads
        self._on_ticket = on_ticket
        self._worker: Any = None
        self.ready = threading.Event()
        """Set when tickets are being taken."""

        @app.task(name=TASK, bind=True, throws=(JobFailed,))  # type: ignore[untyped-decorator]  # celery has no types
        def run(task: Task, job_id: str) -> str:
            return self._run_ticket(job_id, task.request.delivery_info["routing_key"])

    def run(self, lanes: Sequence[str]) -> None:
        """Take tickets until the process ends. Blocks."""
        task_postrun.connect(self._wake, weak=False)
        self._worker = self._app.WorkController(
            hostname=self._hostname,
            pool_cls="threads",
            concurrency=self._threads,
            queues=list(lanes),
            task_events=True,
            # Workers learn of each other by the job store alone.
            without_mingle=True,
            without_gossip=True,
            ready_callback=lambda _consumer: self.ready.set(),
            loglevel="WARNING",
        )
        self._worker.start()

    def pause(self, lanes: Sequence[str]) -> None:
        """Take no more tickets from these lanes."""
        self._in_the_loop(lambda consumer: [consumer.cancel_task_queue(lane) for lane in lanes])

    def resume(self, lanes: Sequence[str]) -> None:
        self._in_the_loop(lambda consumer: [consumer.add_task_queue(lane) for lane in lanes])

    def _in_the_loop(self, action: Callable[[Any], object]) -> None:
        """Celery's consumer belongs to its event loop's thread: act there."""
        consumer = self._worker.consumer
        consumer.call_soon(action, consumer)

    def _run_ticket(self, job_id: str, lane: str) -> str:
        ended = self._on_ticket(job_id, lane)
        if ended is None:
            # Not this ticket's doing: monitors keep what they know of the job.
            raise Ignore
        if ended.state is JobState.FAILED:
            assert ended.failure is not None
            raise JobFailed(f"{ended.failure.code}: {ended.failure.message}")
        return str(ended.state)

    def _wake(self, **_: object) -> None:
        hub = self._worker.consumer.hub if self._worker and self._worker.consumer else None
        if hub is None:
            return
        for seconds in WAKE_SECONDS:
            hub.call_soon(hub.call_later, seconds, _nothing)


def _nothing() -> None:
    """Waking the loop is all."""
