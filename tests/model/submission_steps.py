"""Steps of a run that submit jobs."""

import json

from tandem.errors import Conflict, IdempotencyConflict, QueueFull
from tandem.job_store import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS, ROOM, UNKNOWN_RETRY_SECONDS, Share
from tandem.specs import PRIORITIES, Scheduling, Webhook
from tests.model.action import action
from tests.model.life_model import QUEUE_LIMIT, Full, Order, compact
from tests.model.side_by_side import (
    BUSY_LANES,
    WEIGHTS,
    WHICH,
    SideBySide,
)


class SubmissionSteps(SideBySide):
    @action(
        20,
        owner=("a", "a", "b", "b", "c"),
        lane=BUSY_LANES,
        priority=(2, 2, 2, 2, 3, 1, 0),
        delay_ms=(0, 0, 0, 0, 4000),
        deadline_ms=(None, None, None, 5000, 30_000),
        key=(("", 0), ("", 0), ("", 0), ("", 2), ("k1", 0), ("k1", 0), ("k1", 2), ("k2", 0)),
        body=("x", "y"),
        is_time_of_day=(False, False, False, True),
        is_other=(False, False, True),
        repeats=(0, 0, 0, 0, 1, 3),
    )
    def submit(
        self,
        owner: str,
        lane: str,
        priority: int,
        delay_ms: int,
        deadline_ms: int | None,
        key: tuple[str, int],
        body: str,
        is_time_of_day: bool,
        is_other: bool,
        repeats: int,
    ) -> None:
        """One job or several; or one whose answer was lost, so that the client's library sends the call again."""
        for repeat in range(repeats + 1):
            if repeats == 1 and repeat == 1:
                self.queue.ids.repeat()
            order = Order(
                id=self.queue.ids.upcoming(),
                owner=owner,
                lane=lane,
                spec=compact({"inputs": body if repeat < 3 else "z"}),
                weight=WEIGHTS[owner],
                owner_limit=key[1],
                priority=priority,
                kind="batch" if is_other else "inference",
                model="m2" if is_other else "m1",
                key=key[0],
                delay_ms=0 if is_time_of_day else delay_ms,
                # A time that may be over already.
                not_before=self.model.now + delay_ms - 1000 if is_time_of_day else None,
                deadline_ms=deadline_ms,
                webhook=is_other,
            )
            self.submit_both(order)

    def submit_both(self, order: Order) -> None:
        scheduling = Scheduling(
            priority=PRIORITIES[order.priority],
            delay_seconds=order.delay_ms / 1000,
            not_before=None if order.not_before is None else order.not_before / 1000,
            deadline_seconds=None if order.deadline_ms is None else order.deadline_ms / 1000,
            webhook=Webhook(url="https://example.org/") if order.webhook else None,
        )
        wanted = self.model.submit(order)
        try:
            answer = self.store.submit(
                kind=order.kind,  # type: ignore[arg-type]  # a Literal that the model does not know
                model=order.model,
                lane=order.lane,
                owner=order.owner,
                spec=json.loads(order.spec),
                scheduling=scheduling,
                share=Share(order.weight, order.owner_limit or None),
                idempotency_key=order.key or None,
            )
        except IdempotencyConflict:
            assert not isinstance(wanted, Full), "a conflict is no lack of room"
            assert wanted[0] == "conflict"
        except QueueFull as error:
            check_full(error, wanted, order.owner_limit)
        else:
            assert not isinstance(wanted, Full), "one job too many was taken"
            assert wanted[0] in ("created", "existing")
            # A call that was sent twice finds the job that it has made itself.
            is_own = wanted[1].id == order.id
            assert (answer.created, answer.job.id) == (is_own, wanted[1].id)

    @action(4, when=lambda self: self.jobs("failed"), number=WHICH)
    def requeue_dead(self, number: int) -> None:
        job_id, new_id = self.pick(number, "failed").id, self.queue.ids.upcoming()
        wanted = self.model.requeue_dead(job_id, new_id)
        try:
            answer = self.store.requeue_dead(job_id)
        except Conflict:
            assert wanted == ("not_dead", None)
        except QueueFull as error:
            check_full(error, wanted, 0)
        else:
            assert not isinstance(wanted, Full), "one job too many was taken"
            assert wanted[1] is not None
            assert (answer.created, answer.job.id) == (wanted[0] == "created", wanted[1].id)


def check_full(error: QueueFull, wanted: object, owner_limit: int) -> None:
    """Refused as the model says, and told when a tenth of the limit will have drained (within bounds)."""
    assert isinstance(wanted, Full), f"there was room: {error}"
    limit = QUEUE_LIMIT if wanted.whose == "all" else owner_limit
    seconds = (wanted.queued - limit * (1 - ROOM)) / wanted.rate if wanted.rate else UNKNOWN_RETRY_SECONDS
    assert error.retry_after is not None
    assert abs(error.retry_after - min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)) < 1e-3
