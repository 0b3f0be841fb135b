"""RQ: it has no threads, so 16 processes of its pool, each a SimpleWorker, which does not fork for a job."""

import time
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker
from rq.worker_pool import WorkerPool

from bench.side import THREADS, WAIT_SECONDS, run

QUEUE = "bench"
NOTHING = "bench.side.nothing"
LOOK_SECONDS = 0.05
START_SECONDS = 60.0
"""For all processes to be there: while some still start, they take the others' time."""


def work(url: str) -> None:
    pool = WorkerPool([QUEUE], connection=Redis.from_url(url), num_workers=THREADS, worker_class=SimpleWorker)
    pool.start(logging_level="ERROR")


class RqProducer:
    def __init__(self, url: str) -> None:
        connection = Redis.from_url(url)
        self._queue = Queue(QUEUE, connection=connection)
        deadline = time.monotonic() + START_SECONDS
        while SimpleWorker.count(connection=connection) < THREADS:
            if time.monotonic() > deadline:
                raise TimeoutError(f"RQ has not started {THREADS} processes within {START_SECONDS:g} s")
            time.sleep(LOOK_SECONDS)

    def submit(self, count: int) -> list[Any]:
        return [self._queue.enqueue(NOTHING) for _ in range(count)]

    def wait(self, submitted: list[Any]) -> list[object]:
        return [job.latest_result(timeout=WAIT_SECONDS).return_value for job in submitted]


if __name__ == "__main__":
    run(work, RqProducer)
