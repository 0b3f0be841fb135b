"""Takes back expired leases, readies what is due, rings for lost tickets, forgets what is over.

Every worker runs it: no leader.
"""

import logging
import threading

from tandem.errors import QueueUnavailable
from tandem.job_store import JobStore

log = logging.getLogger(__name__)


class Reaper:
    def __init__(self, jobs: JobStore, sweep_seconds: float) -> None:
        self._jobs = jobs
        self._interval = sweep_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def sweep(self) -> None:
        """One idempotent round."""
        requeued, died = self._jobs.reap()
        if requeued or died:
            log.warning("lost leases: %d jobs queued again, %d failed for good", requeued, died)
        _, expired = self._jobs.wake()
        if expired:
            log.info("%d queued jobs expired", expired)
        self._jobs.ring_lost()
        self._jobs.prune()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                self.sweep()
            except QueueUnavailable as error:
                log.debug("not swept: %s", error.message)
