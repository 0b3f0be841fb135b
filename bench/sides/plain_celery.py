"""Plain Celery: the threads pool, the Redis broker and result backend, its defaults otherwise (early
acknowledgement, prefetch 4); a batch is a task for each row."""

from collections.abc import Sequence
from typing import Any

from celery import Celery

from bench.side import TASK, THREADS, WAIT_SECONDS, length, nothing, run

ROW_TASK = "bench.row"


def celery_app(url: str) -> Celery:
    app = Celery("plain", broker=url, backend=url)
    app.conf.update(broker_connection_retry_on_startup=True, result_expires=600)
    app.task(name=TASK)(nothing)
    app.task(name=ROW_TASK)(length)
    return app


def work(url: str) -> None:
    celery_app(url).worker_main(["worker", "--pool=threads", f"--concurrency={THREADS}", "--loglevel=ERROR"])


class CeleryProducer:
    def __init__(self, url: str) -> None:
        self._app = celery_app(url)

    def submit(self, count: int) -> list[Any]:
        return [self._app.send_task(TASK) for _ in range(count)]

    def wait(self, submitted: list[Any]) -> list[object]:
        return [result.get(timeout=WAIT_SECONDS) for result in submitted]

    def rows(self, texts: Sequence[str]) -> list[int]:
        submitted = [self._app.send_task(ROW_TASK, (text,)) for text in texts]
        return [result.get(timeout=WAIT_SECONDS) for result in submitted]


if __name__ == "__main__":
    run(work, CeleryProducer)
