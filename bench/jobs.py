"""What a job costs beside its work, against other queues, in one run: `python bench/jobs.py [--quick]`.

Four parts: the job store's single calls; jobs that do nothing, against Celery, RQ, Dramatiq, taskiq and bare lists;
a long queue; a batch of rows. Every side has one worker and a Valkey server with AOF of its own, and answers what it
was asked. Prints tables and writes bench-jobs.json. A peer that could not be measured is named, with the reason.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.job_backlog import measure_depths, measure_memory
from bench.job_costs import BARE, measure_calls
from bench.job_peers import CELERY, SIDES, TANDEM, SideFailed, measure
from bench.queue_server import valkey
from bench.side import Counts
from bench.sides.tandem_jobs import ROWS_OF_A_JOB

FILE = Path("bench-jobs.json")
BUSY_LOAD = 0.5
"""Processes that want to run, for each core: above it the figures tell of the others' work as well."""


@dataclass(frozen=True, slots=True)
class Amount:
    """How much the whole run measures."""

    counts: Counts
    calls: int
    depths: tuple[int, ...]
    samples: int
    """Claims at each depth."""
    payloads: int
    """Jobs with a payload, for their memory."""


FULL = Amount(
    Counts(warm_up=50, one_by_one=500, at_once=2000, rounds=3, rows=10_000),
    calls=1000,
    depths=(1_000, 10_000, 50_000, 200_000),
    samples=500,
    payloads=4000,
)
QUICK = Amount(
    Counts(warm_up=5, one_by_one=20, at_once=100, rounds=1, rows=200),
    calls=50,
    depths=(100, 1_000),
    samples=50,
    payloads=200,
)
"""Shows that everything runs; its figures mean nothing."""


def single_calls(amount: Amount) -> dict[str, Any]:
    with valkey() as url:
        calls = measure_calls(url, calls=amount.calls, warm_up=amount.counts.warm_up)
    bare = calls[BARE]["p50_ms"]
    print(f"\nsingle calls, {amount.calls} of each    p50 ms    p99 ms    against {BARE}")
    for name, figures in calls.items():
        print(f"  {name:26} {figures['p50_ms']:9.3f} {figures['p99_ms']:9.3f} {figures['p50_ms'] / bare:9.2f}")
    return calls


def no_ops(amount: Amount) -> dict[str, Any]:
    counts = amount.counts
    print(f"\njobs that do nothing, one by one ({counts.one_by_one}) and {counts.at_once} at once")
    print(f"  {'side':12} {'p50 ms':>9} {'p99 ms':>9} {'jobs/s':>9}   Tandem's p50, jobs/s against it")
    sides: dict[str, Any] = {}
    for side in SIDES:
        try:
            figures: dict[str, Any] = dict(measure(side, "measure", counts))
        except SideFailed as reason:
            if side is TANDEM:
                raise
            sides[side.name] = {"worker": side.how, "missing": str(reason)}
            print(f"  {side.name:12} missing: {reason}", flush=True)
            continue
        ratios = _ratios(sides.get(TANDEM.name, figures), figures)
        sides[side.name] = {"worker": side.how, **figures, "tandem_against_it": ratios}
        print(
            f"  {side.name:12} {figures['p50_ms']:9.2f} {figures['p99_ms']:9.2f} {figures['jobs_per_second']:9.0f}"
            f"   {ratios['p50_ms']:5.2f} {ratios['jobs_per_second']:5.2f}   {side.how}",
            flush=True,
        )
    return sides


def long_queue(amount: Amount) -> dict[str, Any]:
    with valkey() as url:
        curve = measure_depths(url, depths=amount.depths, samples=amount.samples)
    with valkey() as url:
        memory = measure_memory(url, count=amount.payloads)
    shortest = next(iter(curve.values()))["p50_ms"]
    print("\nclaim and finish out of a long queue   p50 ms    p99 ms    against the shortest")
    for depth, figures in curve.items():
        p50, p99 = figures["p50_ms"], figures["p99_ms"]
        print(f"  {depth:>9} queued {p50:27.3f} {p99:9.3f} {p50 / shortest:9.2f}")
    print(f"  memory of a queued job with 1 KB asked     {memory['queued_job_bytes']:9.0f} bytes")
    print(f"  memory of an ended one with 1 KB answered  {memory['ended_job_bytes']:9.0f} bytes")
    return {"claim_and_finish": curve, "memory_with_1_kb": memory}


def batch_of_rows(amount: Amount) -> dict[str, Any]:
    rates = {side.name: measure(side, "rows", amount.counts)["rows_per_second"] for side in (TANDEM, CELERY)}
    ratio = rates[TANDEM.name] / rates[CELERY.name]
    what = {
        TANDEM.name: f"jobs of {ROWS_OF_A_JOB:,} rows: one claim, one lease and one result for all rows of a job",
        CELERY.name: "a task and a result for each row",
    }
    print(f"\na batch of {amount.counts.rows:,} rows      rows/s")
    for name, rate in rates.items():
        print(f"  {name:20} {rate:13.0f}   {what[name]}")
    print(f"  {'ratio':20} {ratio:13.1f}   not the same thing: a row of Tandem's has no state or retry of its own")
    return {"rows": amount.counts.rows, "rows_per_second": rates, "ratio": ratio, "what": what}


def _ratios(tandem: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: tandem[name] / other[name] for name in ("p50_ms", "p99_ms", "jobs_per_second")}


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    """The model's name where the system tells it (Linux), else the architecture."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {platform.machine()}" if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny counts: shows that all runs, measures nothing")
    amount = QUICK if parser.parse_args().quick else FULL
    machine = _machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    if machine["load_at_start"] > BUSY_LOAD * (machine["cores"] or 1):
        print("this machine is busy with other work: the figures tell of that as well")
    started = time.monotonic()
    figures = {
        "single_calls": single_calls(amount),
        "no_ops": no_ops(amount),
        "long_queue": long_queue(amount),
        "batch": batch_of_rows(amount),
    }
    seconds = time.monotonic() - started
    print(f"\n{seconds:.0f} s in all")
    if amount is QUICK:
        print(f"{FILE} is left as it was: these counts are too small to be kept")
        return
    FILE.write_text(json.dumps({"machine": machine, "seconds": seconds, **figures}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
