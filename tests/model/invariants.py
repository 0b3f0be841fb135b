"""What must hold of the server's contents after every step, whatever the model says."""

from tandem.job import TRANSITIONS, JobState
from tests.model.clocked_library import TICKETS_KEPT, Contents

PLACES = ("delayed", "leases", "ended")
"""Indexes of jobs of which each job is in one, or in a ready list, or it is queued and paused and in none."""
ENDED_FOR_GOOD = ("state", "result", "failure", "finished_at", "finished_by", "attempt")
"""Fields that never change again once a job has ended."""


def records(contents: Contents) -> dict[str, dict[str, str]]:
    """Job id -> its record's fields."""
    return {
        key.removeprefix("tandem:job:"): value for key, value in contents.items() if key.startswith("tandem:job:")
    }


def check_change(before: Contents, after: Contents) -> None:
    """Fences only grow, and an end is an end: the same state, result and failure until the job is forgotten."""
    was = records(before)
    for job_id, job in records(after).items():
        if job_id not in was:
            continue
        old = was[job_id]
        assert int(job["attempt"]) >= int(old["attempt"]), f"{job_id}: the fence went back"
        if TRANSITIONS[JobState(old["state"])]:
            continue
        for name in ENDED_FOR_GOOD:
            assert job.get(name) == old.get(name), f"{job_id} has ended, and its {name} changed"


def check_places(contents: Contents) -> None:
    """Each job is in exactly one place, which fits its state; no index names a job that is not there."""
    jobs = records(contents)
    places: dict[str, list[str]] = {job_id: [] for job_id in jobs}
    for key, members in contents.items():
        index = key.removeprefix("tandem:")
        is_place = index in PLACES or index.startswith(("ready:", "alone:"))
        if is_place or index in ("deadlines", "dead", "webhooks") or index.split(":")[0] == "jobs":
            assert set(members) <= set(jobs), f"{index} names jobs that are not there"
        if is_place:
            for job_id in members:
                places[job_id].append("ready" if ":" in index else index)
    for job_id, job in jobs.items():
        if job["state"] == "running":
            wanted = [["leases"]]
        elif job["state"] == "queued":
            wanted = [[]] if "paused" in job else [["ready"], ["delayed"]]
        else:
            wanted = [["ended"]]
        assert places[job_id] in wanted, f"{job_id} ({job['state']}) is in {places[job_id]}"


def check_nothing_forgotten_is_left(contents: Contents) -> None:
    """A job that is forgotten leaves no key."""
    jobs = records(contents)
    for key in contents:
        kind, _, job_id = key.removeprefix("tandem:").partition(":")
        assert kind not in ("spec", "events") or job_id in jobs, f"{key} is left of a forgotten job"


def check_tickets(contents: Contents) -> None:
    """As the sweep leaves it: every lane with ready jobs that is not paused has tickets for them."""
    paused = contents.get("tandem:paused", {})
    for lane in contents.get("tandem:lanes", {}):
        ready = sum(
            len(members)
            for key, members in contents.items()
            if key.startswith(("tandem:ready:", "tandem:alone:")) and key.endswith(f":{lane}")
        )
        tickets = len(contents.get(lane, []))
        assert lane in paused or "*" in paused or tickets >= min(ready, TICKETS_KEPT), f"{lane} has too few tickets"


SERVICE_KEYS = ("sequence", "tickets", "lanes", "weights", "turns", "drained", "run_id", "memory")
"""What an empty queue may keep: counters, and hashes with one field for each lane and owner."""


def check_nothing_is_left(contents: Contents) -> None:
    """When every job is forgotten, nothing has grown but the lists of lanes and owners."""
    lanes = set(contents.get("tandem:lanes", {}))
    left = {key for key in contents if key.removeprefix("tandem:") not in SERVICE_KEYS} - lanes
    assert not left, f"left of jobs that are all forgotten: {sorted(left)}"
