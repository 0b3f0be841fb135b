"""What is done for all jobs at once, and beside them: sweeps, nudges, webhooks."""

import time

from tandem.artifacts import ArtifactStore
from tandem.errors import WorkerLost
from tandem.function_library import PREFIX, FunctionLibrary
from tandem.job import Failure
from tandem.job_reads import JobReader
from tandem.redis_connection import ANSWER_SECONDS, connect
from tandem.settings import Settings
from tandem.webhooks.schedule import WebhookDue

CRASHES_IN_ALL = 10
"""A job that was lost with its worker so often has failed, whoever was at fault each time."""
SWEEP_LIMIT = 500
"""Jobs handled in one sweeping call, to keep each call short."""
NUDGE_SECONDS = 5.0
"""How long one wait for a nudge blocks: bounds how late a dead connection is noticed."""


class JobUpkeep(JobReader):
    """The part of the job store that no single job asks for; any process may call it at any time."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore) -> None:
        super().__init__(connect(settings.redis_url), artifacts)
        self._blocking = connect(settings.redis_url, answer_seconds=NUDGE_SECONDS + ANSWER_SECONDS)
        self._functions = FunctionLibrary(self.redis, self.guard)
        self._once = connect(settings.redis_url, once=True)
        self._claims = FunctionLibrary(self._once, self.guard)
        self._settings = settings
        self._lease_ms = milliseconds(settings.lease_seconds)
        self._server_ahead_ms: float | None = None
        """The server's clock minus this process's monotonic one, as of the last answer that told it."""

    # Sweeps

    def reap(self) -> tuple[int, int]:
        """Take back the attempts whose lease is over: (queued again, failed for good)."""
        allowed = self._settings.crashes_allowed
        failure = Failure.of(WorkerLost(f"{allowed} workers died or fell silent while they ran this job"))
        now, requeued, died = self._functions.call(
            "reap",
            SWEEP_LIMIT,
            self._lease_ms,
            allowed,
            max(allowed, CRASHES_IN_ALL),
            failure.model_dump_json(),
            milliseconds(self._settings.dead_letter_seconds),
            self._not_after(),
        )
        self._learn_clock(now)
        return requeued, died

    def wake(self) -> tuple[int, int]:
        """Ready the delayed jobs whose time has come, end those past their deadline: (readied, expired)."""
        woken, expired = self._functions.call("wake", SWEEP_LIMIT)
        return woken, expired

    def ring_lost(self) -> int:
        """Push the tickets that the lanes lack; answers how many. Some are on their way: one too many is harmless."""
        return int(self._functions.call("ring_lost"))

    def prune(self) -> int:
        """Forget ended jobs whose time to live is over; answers how many."""
        return int(self._functions.call("prune"))

    # Nudges

    def wait_for_nudge(self, worker: str) -> bool:
        """Wait until one of this worker's jobs is cancelled, paused or expired; False after a quiet while.

        Blocks on a connection of its own; call it from one thread.
        """
        with self.guard():
            return self._blocking.blpop([f"{PREFIX}nudge:{worker}"], timeout=NUDGE_SECONDS) is not None

    def nudge(self, worker: str) -> None:
        """Wake whoever waits in `wait_for_nudge`."""
        with self.guard(), self.redis.pipeline(transaction=True) as pipe:
            pipe.lpush(f"{PREFIX}nudge:{worker}", "")
            pipe.pexpire(f"{PREFIX}nudge:{worker}", milliseconds(2 * NUDGE_SECONDS))
            pipe.execute()

    # Webhooks

    def take_webhooks(self, limit: int, lease_seconds: float) -> list[WebhookDue]:
        """Ended jobs whose webhook is to be told now; nobody else gets them for `lease_seconds`."""
        answer = self._functions.call("take_webhooks", limit, milliseconds(lease_seconds))
        return [WebhookDue(job_id, tries) for job_id, tries in zip(answer[::2], answer[1::2], strict=True)]

    def settle_webhook(self, job_id: str, *, retry_in: float | None, note: str) -> None:
        """Note how a delivery went; None ends it, otherwise it is due again in so many seconds."""
        self._functions.call("settle_webhook", job_id, "" if retry_in is None else milliseconds(retry_in), note)

    def close(self) -> None:
        for client in (self.redis, self._once, self._blocking):
            client.close()

    def _learn_clock(self, server_ms: int) -> None:
        self._server_ahead_ms = server_ms - time.monotonic() * 1000

    def _not_after(self) -> int:
        """When this process stops waiting for an answer, by the server's clock: a call that a frozen server gets to
        later must do nothing. 0 as long as the server's clock is not known."""
        if self._server_ahead_ms is None:
            return 0
        return int(time.monotonic() * 1000 + self._server_ahead_ms + ANSWER_SECONDS * 1000)


def milliseconds(seconds: float) -> int:
    """As the server counts them."""
    return round(seconds * 1000)
