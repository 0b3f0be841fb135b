"""The clerk drives batches beside the requests: one in each API process, each batch with one of them at a time.

A batch is leased to the clerk that takes it. When its process dies, the lease ends, and another clerk goes on from
what the records say.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

from api.batches.drive import LEASE_SECONDS, Drive
from tandem.batch import Batch
from tandem.errors import AttemptStopped, QueueUnavailable, TandemError, UnknownBatch
from tandem.services import Services

logger = logging.getLogger(__name__)

DRIVEN = 32
"""Batches that one process drives at a time; others wait for another process, or for one of these to end."""
HEAVY = 1
"""Of them, how many are validated or finalized at a time: each keeps a core busy, which requests need as well."""
THREADS = 4
"""One for each heavy step, the others for short looks and for taking."""
POLL_SECONDS = 0.5
"""How late a new batch, or the end of a shard, is noticed."""
LOOK_SHARE = 20.0
"""Between two looks at a batch passes so many times what one takes: a batch of 400 shards is looked at less often."""
MAX_POLL_SECONDS = LEASE_SECONDS / 3
AWAY_SECONDS = 2.0
"""Until the queue is asked again after it did not answer."""
TRIES = 5
"""How often an unforeseen error may be met with a batch until it has failed."""

Answer = TypeVar("Answer")


class Clerk:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._stopping = threading.Event()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="clerk")
        self._heavy = asyncio.Semaphore(HEAVY)
        self._queue_is_away = False

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Drive batches while the block runs."""
        working = asyncio.create_task(self.run(), name="batches")
        try:
            yield
        finally:
            # Long steps break off by themselves; they cannot be cancelled.
            self._stopping.set()
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working
            self._threads.shutdown()

    async def run(self) -> None:
        """Take and drive batches until cancelled; they are given back then."""
        driven: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                batch = await self._take() if len(driven) < DRIVEN else None
                if batch is not None:
                    task = tasks.create_task(self._drive(batch), name=batch.id)
                    driven.add(task)
                    task.add_done_callback(driven.discard)
                    continue
                await asyncio.sleep(AWAY_SECONDS if self._queue_is_away else POLL_SECONDS)

    async def _take(self) -> Batch | None:
        try:
            batch = await self._in_thread(lambda: self._services.batches.take(LEASE_SECONDS))
        except QueueUnavailable as error:
            if not self._queue_is_away:
                logger.warning("batches wait: %s", error)
            self._queue_is_away = True
            return None
        except Exception:
            # Nothing of ours that ended this loop would be noticed before somebody missed a batch.
            logger.exception("no batch can be taken; going on")
            return None
        if self._queue_is_away:
            logger.warning("batches go on: the queue answers again")
        self._queue_is_away = False
        return batch

    async def _drive(self, batch: Batch) -> None:
        """One batch to its end, or until another clerk must go on. Raises nothing but CancelledError."""
        drive = Drive(self._services, batch, self._stopping)
        try:
            while not await self._step(drive):
                pass
        except asyncio.CancelledError:
            await asyncio.shield(self._in_thread(lambda: self._let_others(drive)))
            raise
        except (AttemptStopped, UnknownBatch) as reason:
            logger.info("%s is left: %s", batch.id, reason)
        except (QueueUnavailable, OSError) as error:
            # Its lease runs out, and whoever takes it then goes on.
            logger.warning("%s waits: %s", batch.id, error)
        except Exception as error:
            logger.exception("%s met an unforeseen error", batch.id)
            await self._in_thread(partial(self._fail_in_the_end, drive, error))

    async def _step(self, drive: Drive) -> bool:
        """One step and the pause after it; True when nothing is left to do."""
        if drive.is_heavy and self._heavy.locked():
            await self._in_thread(drive.renew)
            await asyncio.sleep(POLL_SECONDS)
            return False
        before, started = drive.batch.status, time.monotonic()
        if drive.is_heavy:
            async with self._heavy:
                is_over = await self._in_thread(drive.step)
        else:
            is_over = await self._in_thread(drive.step)
        if not is_over and drive.batch.status == before:
            took = time.monotonic() - started
            await asyncio.sleep(min(max(POLL_SECONDS, LOOK_SHARE * took), MAX_POLL_SECONDS))
        return is_over

    def _fail_in_the_end(self, drive: Drive, error: Exception) -> None:
        """At once where no repetition helps, else after some tries: each waits for the end of a lease."""
        reason = error if isinstance(error, TandemError) else None
        try:
            is_final = reason is not None and not reason.retryable
            if is_final or drive.count_trouble() >= TRIES:
                drive.fail(reason or TandemError(f"{type(error).__name__}: {error}"))
        except Exception:
            logger.exception("%s could not be failed; its next clerk tries again", drive.batch.id)

    def _let_others(self, drive: Drive) -> None:
        try:
            drive.give_back()
        except TandemError as error:
            logger.info("%s is not given back, its lease runs out: %s", drive.batch.id, error)

    async def _in_thread(self, call: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
