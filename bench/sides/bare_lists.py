"""No library at all: LPUSH and BRPOP, 16 threads, an answer list for each job. Nothing is recorded: the floor."""

import threading
import uuid
from typing import Any

import redis

from bench.side import THREADS, WAIT_SECONDS, nothing, run

QUEUE = "bench"


def work(url: str) -> None:
    threads = [threading.Thread(target=answer, args=(url,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def answer(url: str) -> None:
    client = redis.Redis.from_url(url, decode_responses=True)
    while True:
        client.lpush(take(client, QUEUE, forever=True), nothing())


def take(client: Any, name: str, *, forever: bool = False) -> str:
    """What comes next in a list."""
    taken = client.brpop([name], timeout=0 if forever else WAIT_SECONDS)
    if taken is None:
        raise TimeoutError(f"nothing came within {WAIT_SECONDS} s")
    return str(taken[1])


class ListProducer:
    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, decode_responses=True)

    def submit(self, count: int) -> list[str]:
        names = [uuid.uuid4().hex for _ in range(count)]
        for name in names:
            self._client.lpush(QUEUE, name)
        return names

    def wait(self, submitted: list[str]) -> list[object]:
        return [int(take(self._client, name)) for name in submitted]


if __name__ == "__main__":
    run(work, ListProducer)
