"""Delivers the webhooks of ended jobs: takes what is due, tries it, and settles how it went.

A job's message is leased to the process that takes it. What the process cannot try in time, or could not settle
before it died, is due again when the lease is over: a message is delivered at least once, and its id is the same.
"""

import asyncio
import logging
import secrets
from contextlib import suppress
from typing import Protocol

from tandem.errors import QueueUnavailable, UnknownJob
from tandem.job import Job
from tandem.webhooks.destination import host_of
from tandem.webhooks.host_queues import Delivery, HostQueues
from tandem.webhooks.payload import Payload, message_id
from tandem.webhooks.schedule import TRIES, WebhookDue, pause_after
from tandem.webhooks.sender import TOTAL_SECONDS, Answer, Sender

logger = logging.getLogger(__name__)

RUNNING = 64
"""Deliveries at the same time. Each waits on a socket; sixteen hosts must be slow to hold up a further one."""
RUNNING_PER_HOST = 4
WAITING = 2000
"""Messages taken and not yet tried: a few kilobytes each."""
WAITING_PER_HOST = 500
TAKE_LIMIT = 64
"""Messages taken in one call: their records are read in one go, in a thread of the event loop's pool."""
LEASE_SECONDS = 120.0
"""Long enough for a full line of one quick host; what a killed process had taken is delayed by so much."""
SETTLE_SECONDS = 15.0
"""Kept free at a lease's end to settle: the queue's server may be restarting."""
POLL_SECONDS = 0.5
"""How late an ended job is noticed; one small call for each API process."""
AWAY_SECONDS = 2.0
"""Until the queue is asked again after it did not answer."""


class WebhookStore(Protocol):
    """What is asked of the store of jobs. Every call may raise QueueUnavailable."""

    def take_webhooks(self, limit: int, lease_seconds: float) -> list[WebhookDue]:
        """Jobs whose webhook is due; for so long nobody else gets them."""

    def settle_webhook(self, job_id: str, *, retry_in: float | None, note: str) -> None:
        """Say how a try went: due again in so many seconds, or, with None, over."""

    def get(self, job_id: str) -> Job:
        """The job's record. Raises UnknownJob."""


class Deliverer:
    """Runs in the API's process, beside the requests. Several processes share the work by the leases."""

    def __init__(
        self,
        store: WebhookStore,
        sender: Sender,
        *,
        running: int = RUNNING,
        running_per_host: int = RUNNING_PER_HOST,
        waiting_per_host: int = WAITING_PER_HOST,
    ) -> None:
        self._store = store
        self._sender = sender
        self._queues = HostQueues(
            running=running,
            running_per_host=running_per_host,
            waiting=WAITING,
            waiting_per_host=waiting_per_host,
        )
        self._one_ended = asyncio.Event()
        self._queue_is_away = False
        self._chance = secrets.SystemRandom().random

    async def run(self) -> None:
        """Deliver until cancelled; what is under way then is tried again when its lease is over."""
        clock = asyncio.get_running_loop().time
        next_take = clock()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    if self._queues.room and clock() >= next_take:
                        next_take = clock() + await self._take(min(TAKE_LIMIT, self._queues.room))
                    self._start(tasks, clock())
                    # With no room, only a delivery that ends makes some.
                    await self._pause(max(next_take - clock(), 0.0) if self._queues.room else None)
        finally:
            self._sender.close()

    async def _pause(self, seconds: float | None) -> None:
        """Until a delivery ends, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._one_ended.wait()
        self._one_ended.clear()

    async def _take(self, limit: int) -> float:
        """Let what is due wait for its turn; answers in how many seconds to take again."""
        leased_until = asyncio.get_running_loop().time() + LEASE_SECONDS
        try:
            due, deliveries = await asyncio.to_thread(self._due, limit, leased_until)
        except QueueUnavailable as error:
            if not self._queue_is_away:
                logger.warning("webhooks wait: %s", error)
            self._queue_is_away = True
            return AWAY_SECONDS
        except Exception:
            # Nothing of ours that ended this loop would be noticed before somebody missed a message.
            logger.exception("webhooks that are due cannot be taken; going on")
            return AWAY_SECONDS
        if self._queue_is_away:
            logger.warning("webhooks go on: the queue answers again")
        self._queue_is_away = False
        for delivery in deliveries:
            # A host with a full line: the message is due again when its lease is over.
            self._queues.offer(delivery)
        return 0.0 if due == limit else POLL_SECONDS

    def _due(self, limit: int, leased_until: float) -> tuple[int, list[Delivery]]:
        """How many were due, and those that can be tried. Blocks on the queue: called in a thread."""
        due = self._store.take_webhooks(limit, LEASE_SECONDS)
        prepared = [self._prepared(one, leased_until) for one in due]
        return len(due), [delivery for delivery in prepared if delivery is not None]

    def _prepared(self, due: WebhookDue, leased_until: float) -> Delivery | None:
        """The message to send; None for a job that is forgotten, or whose record cannot be read."""
        try:
            job = self._store.get(due.job_id)
            url = str(job.spec["webhook"]["url"])
            return Delivery(
                job_id=job.id,
                url=url,
                host=host_of(url),
                body=Payload.of(job).model_dump_json(),
                tries=due.deliveries,
                leased_until=leased_until,
            )
        except UnknownJob:
            return None
        except QueueUnavailable:
            raise
        except Exception as error:
            logger.exception("the webhook of job %s cannot be made", due.job_id)
            reason = f"the message cannot be made: {type(error).__name__}"
            pause, note = self._verdict(Answer(None, reason), due.deliveries + 1)
            self._store.settle_webhook(due.job_id, retry_in=pause, note=note)
            return None

    def _start(self, tasks: asyncio.TaskGroup, now: float) -> None:
        while (delivery := self._queues.next()) is not None:
            if now + TOTAL_SECONDS + SETTLE_SECONDS > delivery.leased_until:
                # It has waited so long that another process may get it in the midst of the try.
                self._queues.ended(delivery)
                continue
            tasks.create_task(self._deliver(delivery))

    async def _deliver(self, delivery: Delivery) -> None:
        """One try, settled. Raises nothing: an exception here would end all other deliveries."""
        try:
            answer = await self._sender.send(message_id(delivery.job_id), delivery.url, delivery.body)
        except Exception as error:
            logger.exception("the webhook of job %s failed in an unforeseen way", delivery.job_id)
            answer = Answer(None, f"internal error: {type(error).__name__}")
        try:
            await self._settle(delivery, answer)
        except Exception:
            # Not settled: due again when its lease is over.
            logger.exception("the webhook of job %s could not be settled", delivery.job_id)
        finally:
            self._queues.ended(delivery)
            self._one_ended.set()

    async def _settle(self, delivery: Delivery, answer: Answer) -> None:
        """Tell the store, again until the lease ends if it does not answer. Raises QueueUnavailable then."""
        clock = asyncio.get_running_loop().time
        pause, note = self._verdict(answer, delivery.tries + 1)
        while True:
            try:
                await asyncio.to_thread(self._store.settle_webhook, delivery.job_id, retry_in=pause, note=note)
                return
            except UnknownJob:
                return
            except QueueUnavailable:
                if clock() + AWAY_SECONDS > delivery.leased_until:
                    raise
                await asyncio.sleep(AWAY_SECONDS)

    def _verdict(self, answer: Answer, tries: int) -> tuple[float | None, str]:
        """Seconds until the next try (None: it is over), and what the job's record says about it."""
        if answer.is_delivered:
            return None, f"delivered {answer.status}"
        if answer.is_gone:
            return None, f"stopped after try {tries}: the receiver answered {answer.status} Gone"
        pause = pause_after(tries, retry_after=answer.retry_after, chance=self._chance())
        if pause is None:
            return None, f"given up after {tries} tries: {answer.reason}"
        return pause, f"try {tries} of {TRIES} failed: {answer.reason}"
