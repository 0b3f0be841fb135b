"""A request that waits for its job: as long as its client does, and no longer than the settings allow."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from anyio import CancelScope
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from api.dependencies import Api
from api.errors import error_of
from tandem.errors import Cancelled, DeadlineExceeded, QueueUnavailable, TandemError, WaitTimeout
from tandem.events import read_events
from tandem.job import Failure, Job, JobEvent, JobState

logger = logging.getLogger("tandem.api")
Answer = TypeVar("Answer")


class Waiting:
    """The wait for one job. It holds no thread: events come through the asynchronous reader."""

    def __init__(self, api: Api, job: Job, *, is_shared: bool) -> None:
        self._api = api
        self._id = job.id
        self._is_shared = is_shared
        """The request has an Idempotency-Key: its client may come back for the job, so leaving does not cancel it."""

    async def events(self) -> AsyncIterator[JobEvent]:
        """The job's events until it has ended. Raises WaitTimeout, QueueUnavailable naming the job."""
        deadline = asyncio.get_running_loop().time() + self._api.settings.wait_seconds
        reader = aiter(read_events(self._api.events, self._id))
        while True:
            try:
                # Not by wait_for, which makes a task for each event.
                async with asyncio.timeout_at(deadline):
                    event = await anext(reader)
            except StopAsyncIteration:
                return
            except TimeoutError:
                seconds = self._api.settings.wait_seconds
                raise WaitTimeout(
                    f"job {self._id} did not end within {seconds:g} s; it goes on: GET /v1/jobs/{self._id}"
                ) from None
            except QueueUnavailable as error:
                raise QueueUnavailable(
                    f"{error.message}; job {self._id} was queued: GET /v1/jobs/{self._id}"
                ) from error
            if event is not None:
                yield event

    async def result(self) -> Job:
        """The job, after it has succeeded. Raises what it failed with; Cancelled, DeadlineExceeded."""
        return succeeded(await self.job())

    async def job(self) -> Job:
        """The job as it stands."""
        return await run_in_threadpool(self._api.services.jobs.get, self._id)

    async def end(self) -> Job:
        """Wait for the end, then as `result`."""
        async for _ in self.events():
            pass
        return await self.result()

    @asynccontextmanager
    async def cancelled_if_abandoned(self) -> AsyncIterator[None]:
        """Cancels the job if the body is left because the client is gone, or the server stops."""
        try:
            yield
        except (ClientDisconnect, asyncio.CancelledError, GeneratorExit):
            if not self._is_shared:
                # This task is being cancelled itself; the call must still be made.
                with CancelScope(shield=True):
                    await self._cancel()
            raise

    async def _cancel(self) -> None:
        try:
            await run_in_threadpool(self._api.services.jobs.cancel, self._id)
        except TandemError as error:
            logger.warning("job %s goes on without its client: %s", self._id, error.message)


def succeeded(job: Job) -> Job:
    """The job itself, if it has succeeded. Raises what it failed with; Cancelled, DeadlineExceeded."""
    if job.state is JobState.CANCELLED:
        raise Cancelled(f"job {job.id} was cancelled; it has no result")
    if job.state is JobState.EXPIRED:
        raise DeadlineExceeded(f"the deadline of job {job.id} passed before it had ended; it has no result")
    if job.state is JobState.FAILED:
        raise error_of(job.failure or Failure.of(TandemError()))
    return job


async def while_connected(request: Request, work: Awaitable[Answer]) -> Answer:
    """What the work returns. Raises ClientDisconnect as soon as the client is gone; the work is then stopped."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        # Their own errors are either raised above or of no interest to a client that is gone.
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    """Returns when the client is gone; the request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
