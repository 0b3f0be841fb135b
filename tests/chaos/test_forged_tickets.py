"""Tickets are a doorbell: lost, repeated, late, reordered and forged ones are harmless, and the worker lives on."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from tandem.tickets import ticket_message
from tests.chaos.nursery import Child
from tests.chaos.stage import LANE, STEADY_LEASE_SECONDS, Stage

JOBS = 12


def forged(**changes: Any) -> str:
    """A ticket with other headers or another body."""
    ticket = json.loads(ticket_message(LANE).replace("@ID@", "forged"))
    return json.dumps(ticket | changes)


def body_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


HEADERS = json.loads(ticket_message(LANE))["headers"]
PROPERTIES = json.loads(ticket_message(LANE))["properties"]
FORGERIES = {
    "another lane in its delivery": forged(
        properties=PROPERTIES | {"delivery_info": {"exchange": "", "routing_key": "a lane that never had a job"}}
    ),
    "arguments": forged(body=body_of(b'[["job_000000000000000000000000", 1], {"lane": "x"}, {}]')),
    "another task": forged(headers=HEADERS | {"task": "os.system"}),
    "a body that is no JSON": forged(body=body_of(b"\x80\x04not json")),
    "pickle": forged(**{"content-type": "application/x-python-serialize", "body": body_of(b"cos\nsystem\n.")}),
    "a start far away": forged(headers=HEADERS | {"eta": "2100-01-01T00:00:00+00:00"}),
    "no headers": forged(headers={}),
    "no properties": json.dumps({"body": "", "content-type": "application/json", "content-encoding": "utf-8"}),
    "a list": "[1, 2, 3]",
    "no JSON": "ring ring",
    "nothing": "",
}


def push(stage: Stage, ticket: str) -> None:
    """Where the worker takes its next ticket from: the tail of the lane's list."""
    stage.jobs.redis.rpush(LANE, ticket)


def assert_it_works_on(stage: Stage, worker: Child, key: str) -> None:
    for number in range(JOBS):
        stage.submit(f"{key}-{number}")
    stage.wait_ended()
    assert worker.is_alive(), stage.logs()


@pytest.mark.parametrize("what", FORGERIES)
def test_a_worker_lives_on_after_a_forged_ticket_with(what: str, stage: Stage) -> None:
    worker = stage.worker(lease_seconds=STEADY_LEASE_SECONDS)
    assert_it_works_on(stage, worker, "before")
    push(stage, FORGERIES[what])
    stage.wait_until(lambda: stage.jobs.redis.llen(LANE) == 0, "the forged ticket is taken")
    assert_it_works_on(stage, worker, "after")
    assert stage.audit().attempts == 2 * JOBS


def lose(stage: Stage) -> None:
    stage.jobs.redis.delete(LANE)


def repeat(stage: Stage) -> None:
    for ticket in stage.jobs.redis.lrange(LANE, 0, -1):
        stage.jobs.redis.rpush(LANE, ticket, ticket)


def reorder(stage: Stage) -> None:
    tickets = stage.jobs.redis.lrange(LANE, 0, -1)
    stage.jobs.redis.delete(LANE)
    stage.jobs.redis.rpush(LANE, *reversed(tickets))


@pytest.mark.parametrize("harm", [lose, repeat, reorder])
def test_every_job_ends_in_one_attempt_after_its_tickets_are_told_to(
    harm: Callable[[Stage], None], stage: Stage
) -> None:
    """Lost, repeated three times or the other way round."""
    for number in range(JOBS):
        stage.submit(f"{harm.__name__}-{number}")
    harm(stage)
    worker = stage.worker(lease_seconds=STEADY_LEASE_SECONDS)
    stage.wait_ended()
    assert worker.is_alive()
    tally = stage.audit()
    assert (tally.ended, tally.attempts) == ({"succeeded": JOBS}, JOBS)
