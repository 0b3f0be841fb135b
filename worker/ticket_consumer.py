"""The Celery side of a worker: takes tickets from its lanes and hands each to a pool thread."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, Task
from celery.signals import task_postrun

from tandem.tickets import TASK

log = logging.getLogger(__name__)

WAKE_SECONDS = (0.005, 0.02)
"""When the event loop is woken after a job, so that it takes the next ticket at once: without it, up to 600 ms pass
between a freed thread and the next ticket (early acknowledgement with prefetch disabled)."""


class TicketConsumer:
    def __init__(
        self,
        app: Celery,
        *,
        hostname: str,
        threads: int,
        on_ticket: Callable[[str], object],
    ) -> None:
        self._app = app
        self._hostname = hostname
        self._threads = threads
        self._on_ticket = on_ticket
        self._worker: Any = None
        self._lanes: tuple[str, ...] = ()
        self._paused: set[str] = set()
        self._lock = threading.Lock()
        self.ready = threading.Event()
        """Set when tickets are being taken."""

        # What monitors are told is about jobs, which a ticket does not name: worker/monitor.py tells it.
        @app.task(name=TASK, bind=True, send_events=False)  # type: ignore[untyped-decorator]  # celery has no types
        def run(task: Task) -> None:
            self._on_ticket(task.request.delivery_info["routing_key"])

    def run(self, lanes: Sequence[str]) -> None:
        """Take tickets until the process ends. Blocks."""
        self._lanes = tuple(lanes)
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
        # Events wait until they are flushed; Celery itself would flush after each.
        self._worker.consumer.on_send_event_buffered = _nothing
        self._worker.start()

    def pause(self, lanes: Sequence[str]) -> None:
        """Take no more tickets from these lanes."""
        with self._lock:
            self._paused.update(lanes)
        self._reconcile_soon()

    def resume(self, lanes: Sequence[str]) -> None:
        with self._lock:
            self._paused.difference_update(lanes)
        self._reconcile_soon()

    def _reconcile_soon(self) -> None:
        """Celery's consumer belongs to its event loop's thread: act there.

        The loop runs what it is handed in no order (kombu's hub keeps it in a set), so what is handed over is not a
        change but a comparison with what is wanted by then.
        """
        consumer = self._worker.consumer
        consumer.call_soon(self._reconcile, consumer)

    def _reconcile(self, consumer: Any) -> None:
        with self._lock:
            paused = frozenset(self._paused)
        for lane in self._lanes:
            takes = consumer.task_consumer.consuming_from(lane)
            if takes and lane in paused:
                consumer.cancel_task_queue(lane)
            elif not takes and lane not in paused:
                consumer.add_task_queue(lane)

    def tell_monitors(self, event: str, **fields: Any) -> None:
        """Add an event to the next message to whoever watches Celery's workers. Raises what the transport raises."""
        self._worker.consumer.event_dispatcher.send(event, **fields)

    def flush_events(self) -> None:
        """Send that message. Raises what the transport raises."""
        self._worker.consumer.event_dispatcher.flush()

    def _wake(self, **_: object) -> None:
        hub = self._worker.consumer.hub if self._worker and self._worker.consumer else None
        if hub is None:
            return
        for seconds in WAKE_SECONDS:
            hub.call_soon(hub.call_later, seconds, _nothing)


def _nothing() -> None:
    """Waking the loop is all."""
