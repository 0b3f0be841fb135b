"""Delivers an outbox's webhooks: takes what is due, tries it, and settles how it went.

A message is leased to the process that takes it. What the process cannot try in time, or could not settle
before it died, is due again when the lease is over: a message is delivered at least once, and its id is the same.
"""

import asyncio
import logging
import secrets
from contextlib import suppress

from tandem.errors import QueueUnavailable
from tandem.webhooks.destination import host_of
from tandem.webhooks.host_queues import Delivery, HostQueues
from tandem.webhooks.outbox import Due, Outbox, Verdict
from tandem.webhooks.schedule import TRIES, pause_after
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
"""How late a message is noticed; a small call or two for each API process."""
AWAY_SECONDS = 2.0
"""Until the queue is asked again after it did not answer."""


class Deliverer:
    """Runs in the API's process, beside the requests. Several processes share the work by the leases."""

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        *,
        running: int = RUNNING,
        running_per_host: int = RUNNING_PER_HOST,
        waiting_per_host: int = WAITING_PER_HOST,
    ) -> None:
        self._outbox = outbox
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
        async with asyncio.TaskGroup() as tasks:
            while True:
                if self._queues.room and clock() >= next_take:
                    next_take = clock() + await self._take(min(TAKE_LIMIT, self._queues.room))
                self._start(tasks, clock())
                # With no room, only a delivery that ends makes some.
                await self._pause(max(next_take - clock(), 0.0) if self._queues.room else None)

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
        due = self._outbox.take(limit, LEASE_SECONDS)
        prepared = [self._prepared(one, leased_until) for one in due]
        return len(due), [delivery for delivery in prepared if delivery is not None]

    def _prepared(self, due: Due, leased_until: float) -> Delivery | None:
        """The message to send; None where there is nothing to send any more, or nothing that could be."""
        try:
            message = self._outbox.message(due.key)
            if message is None:
                return None
            return Delivery(due.key, host_of(message.url), message, due.tries, leased_until)
        except QueueUnavailable:
            raise
        except Exception as error:
            logger.exception("webhook %s cannot be made", due.key)
            reason = f"the message cannot be made: {type(error).__name__}"
            self._outbox.settle(due.key, self._verdict(Answer(None, reason), due.tries + 1))
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
            answer = await self._sender.send(delivery.message)
        except Exception as error:
            logger.exception("webhook %s failed in an unforeseen way", delivery.key)
            answer = Answer(None, f"internal error: {type(error).__name__}")
        try:
            await self._settle(delivery, answer)
        except Exception:
            # Not settled: due again when its lease is over.
            logger.exception("webhook %s could not be settled", delivery.key)
        finally:
            self._queues.ended(delivery)
            self._one_ended.set()

    async def _settle(self, delivery: Delivery, answer: Answer) -> None:
        """Tell the outbox, again until the lease ends if it does not answer. Raises QueueUnavailable then."""
        clock = asyncio.get_running_loop().time
        verdict = self._verdict(answer, delivery.tries + 1)
        while True:
            try:
                await asyncio.to_thread(self._outbox.settle, delivery.key, verdict)
                return
            except QueueUnavailable:
                if clock() + AWAY_SECONDS > delivery.leased_until:
                    raise
                await asyncio.sleep(AWAY_SECONDS)

    def _verdict(self, answer: Answer, tries: int) -> Verdict:
        """How the `tries`-th try went."""
        if answer.is_delivered:
            return Verdict("delivered", f"delivered {answer.status}")
        if answer.is_gone:
            return Verdict("gone", f"stopped after try {tries}: the receiver answered {answer.status} Gone")
        pause = pause_after(tries, retry_after=answer.retry_after, chance=self._chance())
        if pause is None:
            return Verdict("given up", f"given up after {tries} tries: {answer.reason}")
        return Verdict("failed", f"try {tries} of {TRIES} failed: {answer.reason}", retry_in=pause)
