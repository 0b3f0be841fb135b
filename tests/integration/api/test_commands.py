"""The commands that schedule jobs and look after the queue, over the real API; a stand-in plays the worker."""

import json
import re

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tandem.cli import app
from tandem.cli.tables import clock_text
from tandem.errors import OutOfMemory
from tandem.job import Failure
from tests.integration.api.api_server import API_KEY
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated

LANE = f"tandem.inference.{CHAT_MODEL}"


class Shell:
    def __init__(self, url: str) -> None:
        self._environment = {"TANDEM_URL": url, "TANDEM_API_KEY": API_KEY, "NO_COLOR": "1", "COLUMNS": "200"}

    def tandem(self, *arguments: str, code: int = 0) -> Result:
        """Run the command and check its exit code; an error of Tandem is raised."""
        ended = CliRunner().invoke(app, list(arguments), env=self._environment, catch_exceptions=False)
        assert ended.exit_code == code, ended.output
        return ended

    def submit(self, *options: str) -> str:
        return self.tandem("submit", "--model", CHAT_MODEL, "--no-wait", *options, "Hello").stdout.strip()

    def row(self, job_id: str) -> str:
        """The job's line in `tandem jobs`."""
        return next(line for line in self.tandem("jobs").stdout.splitlines() if line.startswith(job_id))


@pytest.fixture
def shell(api_url: str) -> Shell:
    return Shell(api_url)


def test_a_job_is_submitted_with_its_schedule(shell: Shell) -> None:
    job_id = shell.submit(
        "--priority", "high", "--delay", "90", "--deadline", "600", "--metadata", "customer=17", "--metadata", "a=b=c"
    )
    (job,) = json.loads(shell.tandem("jobs", "--json").stdout)
    assert (job["id"], job["priority"], job["metadata"]) == (job_id, "high", {"customer": "17", "a": "b=c"})
    assert round(job["deadline"] - job["created_at"]) == 600
    assert re.search(r" high +queued, in (89|90) s +0 ", shell.row(job_id))
    assert "NAME=VALUE" in shell.tandem("submit", "--model", CHAT_MODEL, "--metadata", "x", "Hello", code=2).output


def test_a_job_is_paused_and_resumed(shell: Shell, worker: StandInWorker) -> None:
    job_id = shell.submit()
    assert f"{job_id} waits until" in shell.tandem("pause", job_id).stdout
    assert "queued, paused" in shell.row(job_id)
    assert worker.jobs.claim(LANE, "asking") is None
    assert f"{job_id} is queued" in shell.tandem("resume", job_id).stdout
    claim = worker.take()
    assert "asked to stop and wait" in shell.tandem("pause", job_id).stdout
    assert "running, pausing" in shell.row(job_id)
    worker.succeed(claim, generated("ended all the same"))
    assert "had ended before: succeeded" in shell.tandem("pause", job_id).stdout


def test_a_lane_and_the_service_are_paused_and_resumed(shell: Shell, worker: StandInWorker) -> None:
    shell.submit()
    assert f"no more jobs of {LANE}" in shell.tandem("pause", "--lane", LANE).stdout
    assert "no more jobs begin" in shell.tandem("pause", "--all").stdout
    shown = shell.tandem("lanes").stdout
    assert re.search(rf"^{re.escape(LANE)} +1 +for \d", shown, re.MULTILINE)
    assert "the whole service has been paused for" in shown
    assert json.loads(shell.tandem("lanes", "--json").stdout)["paused_since"] is not None
    shell.tandem("resume", "--all")
    assert worker.jobs.claim(LANE, "asking") is None
    shell.tandem("resume", "--lane", LANE)
    assert "paused for" not in shell.tandem("lanes").stdout
    assert worker.jobs.claim(LANE, "asking") is not None


@pytest.mark.parametrize("arguments", [[], ["job_1", "--all"], ["--lane", LANE, "--all"]])
def test_one_thing_at_a_time_is_paused(shell: Shell, arguments: list[str]) -> None:
    for command in ("pause", "resume"):
        assert "give one of" in shell.tandem(command, *arguments, code=2).output


def test_dead_letters_are_listed_shown_and_requeued(shell: Shell, worker: StandInWorker) -> None:
    ids = [shell.submit() for _ in range(3)]
    for _ in ids:
        worker.bury(worker.take(), OutOfMemory("no memory for a minute"))
    assert "failed, dead" in shell.row(ids[0])
    assert shell.tandem("dead", "list").stdout.count("out_of_memory: no memory for a minute") == 3
    assert {job["id"] for job in json.loads(shell.tandem("dead", "list", "--json").stdout)} == set(ids)
    shown = shell.tandem("dead", "show", ids[0]).stdout
    assert re.search(r"failure +type: OutOfMemory", shown)
    assert re.search(r"finished_at +\d{4}-\d\d-\d\d ", shown)
    requeued = shell.tandem("dead", "requeue", ids[0]).stdout
    assert re.fullmatch(rf"{ids[0]} -> job_\w+\n", requeued)
    assert "failed, requeued" in shell.row(ids[0])
    rest = shell.tandem("dead", "requeue", "--all").stdout.splitlines()
    assert {line.split()[0] for line in rest} == set(ids[1:])
    assert "there are no dead letters" in shell.tandem("dead", "list").stdout
    assert "or --all" in shell.tandem("dead", "requeue", code=2).output


def test_a_log_tells_of_retries_and_begins_when_the_job_did(shell: Shell, worker: StandInWorker) -> None:
    job_id = shell.submit()
    claim = worker.take()
    worker.jobs.retry(job_id, claim.fence, Failure.of(OutOfMemory("no room")), 0.01)
    worker.succeed(worker.take(), generated("done"))
    lines = shell.tandem("logs", job_id).stdout.splitlines()
    assert re.search(r"retry +again at \d\d:\d\d:\d\d after out_of_memory: no room", lines[2])
    created = json.loads(shell.tandem("jobs", "--json").stdout)[0]["created_at"]
    assert lines[0].startswith(clock_text(created))
    assert "2 (1 retried)" in shell.row(job_id)
