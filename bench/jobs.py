"""What a job costs beside its work: Tandem against plain Celery, in one run: `python bench/jobs.py`.

Both run a task that does nothing, in one worker with 16 threads, over one Valkey server with AOF. Tandem's side is
the worker's own consumer, executor, leases and reporter with a runner that answers at once; Celery's is a task with
the Redis result backend. Prints a table and writes bench-jobs.json.
"""

import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from celery import Celery

from tandem import embedded_valkey
from tandem.artifacts import ArtifactStore
from tandem.events import connect_async, read_events
from tandem.job_store import JobStore
from tandem.ports import PortWish, reserve
from tandem.settings import Settings
from tandem.tickets import create_app, lane

THREADS = 16
"""Of each worker, as facts about Celery's throughput are usually given."""
WARM_UP = 50
ONE_BY_ONE = 500
"""Jobs submitted each after the last one's result: enough for a 99th percentile."""
AT_ONCE = 2000
"""Jobs submitted as fast as can be, then drained."""
MODEL = "no-op"
LANE = lane("inference", MODEL)
TASK = "bench.nothing"
PASSWORD = "bench"  # noqa: S105  # of a server that lives as long as this run


def plain_celery(url: str) -> Celery:
    app = Celery("plain", broker=url, backend=url)
    app.conf.update(broker_connection_retry_on_startup=True, result_expires=600)
    app.task(name=TASK)(nothing)
    return app


def nothing() -> int:
    return 1


def job_store(url: str) -> JobStore:
    settings = Settings(redis_url=url, artifacts_url=f"file://{tempfile.gettempdir()}/tandem-bench-artifacts")
    return JobStore(settings, ArtifactStore(settings.artifacts_url))


def work_for_tandem(url: str) -> None:
    from worker.executor import JobExecutor
    from worker.lease import LeaseKeeper
    from worker.reporter import Reporter
    from worker.ticket_consumer import TicketConsumer

    settings, jobs = Settings(redis_url=url), job_store(url)
    leases, reporter = LeaseKeeper(jobs, settings.lease_seconds), Reporter(jobs)
    leases.start()
    reporter.start()
    executor = JobExecutor(jobs, leases, reporter, {"inference": lambda _: 1}, "bench")
    consumer = TicketConsumer(
        create_app(settings),
        hostname="worker@bench",
        threads=THREADS,
        on_ticket=lambda job_id, _: executor.run(job_id),
    )
    consumer.run([LANE])


def work_for_celery(url: str) -> None:
    plain_celery(url).worker_main(["worker", "--pool=threads", f"--concurrency={THREADS}", "--loglevel=ERROR"])


@contextmanager
def valkey() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        (port,) = reserve([PortWish("", "127.0.0.1", 0)])
        configuration = embedded_valkey.configure(Path(folder), port=port, password=PASSWORD)
        process = subprocess.Popen([embedded_valkey.binary(), configuration], stdout=subprocess.DEVNULL)
        try:
            url = embedded_valkey.url(port=port, password=PASSWORD)
            while not embedded_valkey.answers(url):
                time.sleep(0.02)
            yield url
        finally:
            process.terminate()
            process.wait()


@contextmanager
def worker(side: str, url: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, __file__, side, url], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


class TandemSide:
    def __init__(self, url: str) -> None:
        self._jobs = job_store(url)
        self._runner, self._client = asyncio.Runner(), connect_async(url)

    def submit(self) -> str:
        return self._jobs.submit(kind="inference", model=MODEL, lane=LANE, owner="bench", spec={}).job.id

    def wait(self, submitted: list[str]) -> None:
        self._runner.run(self._wait(submitted))

    async def _wait(self, submitted: list[str]) -> None:
        for job_id in submitted:
            async for _ in read_events(self._client, job_id):
                pass


class CelerySide:
    def __init__(self, url: str) -> None:
        self._app = plain_celery(url)

    def submit(self) -> object:
        return self._app.send_task(TASK)

    def wait(self, submitted: list[object]) -> None:
        for result in submitted:
            result.get(timeout=60)


def measure(side: TandemSide | CelerySide) -> dict[str, float]:
    def one_by_one(jobs: int) -> list[float]:
        return [timed(lambda: side.wait([side.submit()])) for _ in range(jobs)]

    one_by_one(WARM_UP)
    latencies = sorted(one_by_one(ONE_BY_ONE))
    drained = timed(lambda: side.wait([side.submit() for _ in range(AT_ONCE)]))
    return {
        "p50_ms": statistics.median(latencies) * 1000,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1000,
        "jobs_per_second": AT_ONCE / drained,
    }


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    if len(sys.argv) == 3:
        {"tandem": work_for_tandem, "celery": work_for_celery}[sys.argv[1]](sys.argv[2])
        return
    figures: dict[str, dict[str, float]] = {}
    for name, side in (("celery", CelerySide), ("tandem", TandemSide)):
        with valkey() as url, worker(name, url):
            figures[name] = measure(side(url))
        print(f"{name:8}", *(f"{key} {value:9.2f}" for key, value in figures[name].items()), flush=True)
    ratios = {key: figures["tandem"][key] / figures["celery"][key] for key in figures["tandem"]}
    print("ratio   ", *(f"{key} {value:9.2f}" for key, value in ratios.items()))
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    Path("bench-jobs.json").write_text(json.dumps({"machine": machine, "ratios": ratios, **figures}, indent=2))


if __name__ == "__main__":
    main()
