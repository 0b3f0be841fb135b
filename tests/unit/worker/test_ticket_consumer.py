"""The consumer's lanes, over a stand-in for Celery's event loop; the real one is in tests/chaos."""

from collections.abc import Callable
from typing import Any

from tandem.settings import Settings
from tandem.tickets import create_app
from worker.ticket_consumer import TicketConsumer


class Loop:
    """What Celery's consumer offers. Like kombu's hub it runs what it was handed in an order of its own: here the
    last first."""

    def __init__(self, lanes: list[str]) -> None:
        self.taken_from = set(lanes)
        self.consumer = self.task_consumer = self
        self._handed: list[Callable[[], None]] = []

    def call_soon(self, action: Callable[..., None], *arguments: Any) -> None:
        self._handed.append(lambda: action(*arguments))

    def run(self) -> None:
        while self._handed:
            self._handed.pop()()

    def consuming_from(self, lane: str) -> bool:
        return lane in self.taken_from

    def add_task_queue(self, lane: str) -> None:
        self.taken_from.add(lane)

    def cancel_task_queue(self, lane: str) -> None:
        self.taken_from.remove(lane)


def consumer_over(loop: Loop, lanes: list[str]) -> TicketConsumer:
    consumer = TicketConsumer(create_app(Settings()), hostname="worker@test", threads=2, on_ticket=lambda _: None)
    consumer._worker, consumer._lanes = loop, tuple(lanes)
    return consumer


def test_a_lane_that_is_paused_and_resumed_at_once_is_taken_from() -> None:
    """Regression. Symptom: after a training ticket that was refused, the worker trained nothing any more. Cause:
    kombu's hub keeps callbacks in a set, so the resumption could run before the pause. Fix: what runs in the loop
    compares what is with what is wanted."""
    lanes = ["one", "two"]
    loop = Loop(lanes)
    consumer = consumer_over(loop, lanes)
    consumer.pause(["one"])
    consumer.resume(["one"])
    loop.run()
    assert loop.taken_from == {"one", "two"}


def test_a_paused_lane_is_left_alone_until_it_is_resumed() -> None:
    lanes = ["one", "two"]
    loop = Loop(lanes)
    consumer = consumer_over(loop, lanes)
    consumer.pause(["one"])
    loop.run()
    assert loop.taken_from == {"two"}
    consumer.resume(["one"])
    loop.run()
    assert loop.taken_from == {"one", "two"}
