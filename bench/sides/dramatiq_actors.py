"""Dramatiq: one worker process with 16 threads, its Redis broker and its Redis result backend."""

import threading
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends.redis import RedisBackend

from bench.side import THREADS, WAIT_SECONDS, nothing, run


def actor(url: str) -> Any:
    broker = RedisBroker(url=url)
    broker.add_middleware(Results(backend=RedisBackend(url=url)))
    # A message looks for its results' backend in the global broker.
    dramatiq.set_broker(broker)
    return dramatiq.actor(nothing, store_results=True)


def work(url: str) -> None:
    dramatiq.Worker(actor(url).broker, worker_threads=THREADS).start()
    threading.Event().wait()


class DramatiqProducer:
    def __init__(self, url: str) -> None:
        self._actor = actor(url)

    def submit(self, count: int) -> list[Any]:
        return [self._actor.send() for _ in range(count)]

    def wait(self, submitted: list[Any]) -> list[object]:
        return [message.get_result(block=True, timeout=WAIT_SECONDS * 1000) for message in submitted]


if __name__ == "__main__":
    run(work, DramatiqProducer)
