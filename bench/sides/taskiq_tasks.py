"""taskiq with taskiq-redis: one receiver whose ordinary functions run in 16 threads, the broker on a Redis stream
(the one that acknowledges), and the Redis result backend."""

import asyncio
from typing import Any

from taskiq.api import run_receiver_task
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from bench.side import TASK, THREADS, WAIT_SECONDS, nothing, run

CHECK_SECONDS = 0.001
"""Between two looks for a result: it is polled for. taskiq's default, 0.2 s, would be the whole latency."""
RESULT_SECONDS = 600


def broker_and_task(url: str) -> tuple[Any, Any]:
    results: Any = RedisAsyncResultBackend(url, result_ex_time=RESULT_SECONDS)
    broker = RedisStreamBroker(url).with_result_backend(results)
    return broker, broker.register_task(nothing, task_name=TASK)


def work(url: str) -> None:
    broker, _ = broker_and_task(url)
    asyncio.run(run_receiver_task(broker, sync_workers=THREADS, max_async_tasks=THREADS, run_startup=True))


class TaskiqProducer:
    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._broker, self._task = broker_and_task(url)
        self._loop.run_until_complete(self._broker.startup())

    def submit(self, count: int) -> list[Any]:
        return self._loop.run_until_complete(self._submit(count))

    async def _submit(self, count: int) -> list[Any]:
        return [await self._task.kiq() for _ in range(count)]

    def wait(self, submitted: list[Any]) -> list[object]:
        return self._loop.run_until_complete(self._wait(submitted))

    async def _wait(self, submitted: list[Any]) -> list[object]:
        results = [await task.wait_result(check_interval=CHECK_SECONDS, timeout=WAIT_SECONDS) for task in submitted]
        return [result.return_value for result in results]


if __name__ == "__main__":
    run(work, TaskiqProducer)
