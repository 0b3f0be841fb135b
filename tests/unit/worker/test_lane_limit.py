"""How many jobs of some lanes a worker runs at a time."""

from collections.abc import Callable, Sequence

from worker.lane_limit import LaneLimit

LANES = ("a", "b")


class Consumer:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause(self, lanes: Sequence[str]) -> None:
        assert sorted(lanes) == sorted(LANES)
        self.calls.append("pause")

    def resume(self, lanes: Sequence[str]) -> None:
        assert sorted(lanes) == sorted(LANES)
        self.calls.append("resume")


def limit(consumer: Consumer, at_once: int, *, goes_on: bool = True) -> LaneLimit:
    return LaneLimit(at_once, LANES, consumer, goes_on=lambda: goes_on, ring=lambda: consumer.calls.append("ring"))


def executing(consumer: Consumer, during: Callable[[], None] = lambda: None) -> Callable[[Callable[[], None]], bool]:
    def execute(claimed: Callable[[], None]) -> bool:
        claimed()
        consumer.calls.append("run")
        during()
        return True

    return execute


def test_a_full_worker_lets_other_workers_have_the_tickets() -> None:
    consumer = Consumer()
    shards = limit(consumer, 1)
    # A ticket that comes meanwhile is let go.
    shards.run(executing(consumer, lambda: shards.run(executing(consumer))))
    assert consumer.calls == ["pause", "run", "resume", "ring"]


def test_up_to_the_limit_jobs_run_together() -> None:
    consumer = Consumer()
    shards = limit(consumer, 2)
    shards.run(executing(consumer, lambda: shards.run(executing(consumer))))
    assert consumer.calls == ["run", "pause", "run", "resume", "ring", "resume", "ring"]


def test_a_ticket_without_a_job_rings_for_nothing() -> None:
    """Else a lane whose claim is refused would be rung, and refused, without end."""
    consumer = Consumer()
    limit(consumer, 1).run(lambda _claimed: False)
    assert consumer.calls == []


def test_a_draining_worker_takes_no_more() -> None:
    consumer = Consumer()
    limit(consumer, 1, goes_on=False).run(executing(consumer))
    assert consumer.calls == ["pause", "run"]
