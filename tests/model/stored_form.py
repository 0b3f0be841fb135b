"""What must be in the server, key for key, when the model is as it is: as documented at the head of record.lua."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from tests.model.clocked_library import Contents
from tests.model.job_model import JobModel
from tests.model.ready_model import ModelJob

OF_THE_SERVER = ("run_id", "memory")
"""Keys that say how the server stands, not the jobs."""
NOT_IN_THE_RECORD = {
    "spec", "place", "lease_until", "is_deadline_watched", "forget_at", "died_at", "webhook_at", "events",
}  # fmt: skip
RECORD = tuple(name for name in ModelJob.__slots__ if name not in NOT_IN_THE_RECORD)

ALWAYS = ("priority", "attempt")
"""Fields that are there even if they are 0."""


def expected(model: JobModel) -> Contents:
    """Every key that must be there -> its value, as `comparable` makes it of the server's; an empty value: no key."""
    keys: Contents = {}
    keys.update(dict(_values(model)))
    for job in model.jobs.values():
        keys[f"job:{job.id}"] = _record(job)
        keys[f"spec:{job.id}"] = job.spec
        keys[f"events:{job.id}"] = job.events
    for name, members in _indexes(model).items():
        keys[name] = members
    for (p, lane), share in model.shares.items():
        keys[f"share:{p}:{lane}"] = dict(share.standing)
        keys[f"passes:{p}:{lane}"] = share.owed if share.last is None else {**share.owed, "*": share.last}
    return {f"tandem:{name}": value for name, value in keys.items() if value} | {
        lane: count for lane, count in model.tickets.items() if count
    }


def comparable(contents: Contents) -> Contents:
    """The server's contents in the same form: numbers as numbers, of each lane's list only its length."""
    return {
        key: _plain(key, value) for key, value in contents.items() if key.removeprefix("tandem:") not in OF_THE_SERVER
    }


def _plain(key: str, value: Any) -> Any:
    if not key.startswith("tandem:"):
        return len(value)
    name = key.removeprefix("tandem:").split(":")[0]
    if name in ("passes", "weights", "ready", "turns", "paused", "queued", "running"):
        return {field: float(number) for field, number in value.items()}
    if name == "lanes":
        return set(value)
    if name in ("sequence", "tickets"):
        return int(value)
    if name == "lost":
        return [value]
    return value


def _values(model: JobModel) -> Iterator[tuple[str, Any]]:
    jobs = model.jobs.values()
    yield "sequence", model.sequence
    yield "tickets", model.tickets_pushed
    yield "lanes", model.lanes
    yield "paused", model.paused
    yield "turns", model.turns
    yield "weights", model.weights
    yield "solo", model.solo
    yield "queued", _count(job.owner for job in jobs if job.state == "queued")
    yield "ready", _count(job.lane for job in jobs if job.place == "ready")
    yield "running", _count(str(job.worker) for job in jobs if job.place == "running" and not job.trusted)
    yield "drained", {owner: f"{at} {rate:.9f}" for owner, (at, rate) in model.drained.items()}
    for worker, kept in model.lost.items():
        yield f"lost:{worker}", [kept.value]
    for worker, kept in model.quiet.items():
        yield f"quiet:{worker}", kept.value
    for lane, kept in model.quiet_for.items():
        yield f"quiet_for:{lane}", kept.value
    for worker, (ids, _) in model.nudges.items():
        yield f"nudge:{worker}", ids
    for (owner, key), (kept, spec) in model.idempotency.items():
        yield f"idempotency:{owner}:{key}", f"{kept.value} {_digest(spec)}"


def _digest(spec: str) -> str:
    """Of a request, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(json.loads(spec), sort_keys=True).encode()).hexdigest()


def _indexes(model: JobModel) -> dict[str, dict[str, float]]:
    indexes: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for job in model.jobs.values():
        lists = (f"state:{job.state}", f"kind:{job.kind}", f"model:{job.model}", f"owner:{job.owner}")
        for index in ("jobs", *(f"jobs:{name}" for name in lists)):
            indexes[index][job.id] = job.sequence
        if job.place == "ready":
            indexes[f"ready:{job.priority}:{job.owner}:{job.lane}"][job.id] = job.sequence
        if job.place == "alone":
            indexes[f"alone:{job.lane}"][job.id] = job.sequence
        times = {
            "delayed": job.not_before if job.place == "delayed" else None,
            "deadlines": job.deadline if job.is_deadline_watched else None,
            "leases": job.lease_until if job.place == "running" else None,
            "ended": job.forget_at if job.place == "ended" else None,
            "dead": job.died_at,
            "webhooks": job.webhook_at,
        }
        for index, at in times.items():
            if at is not None:
                indexes[index][job.id] = at
    return indexes


def _record(job: ModelJob) -> dict[str, str]:
    fields = {name: getattr(job, name) for name in RECORD}
    present = {name: value for name, value in fields.items() if value not in (None, False) or name in ALWAYS}
    return {name: "1" if value is True else str(value) for name, value in present.items()}


def _count(names: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
