"""What an operator does over HTTP: dead letters, lanes, maintenance."""

import time
from pathlib import Path

import httpx
import pytest

from tandem.api_keys import digest_of
from tandem.errors import OutOfMemory, QueueFull
from tandem.services import Services
from tandem.settings import ApiSettings
from tests.integration.api.api_server import client_of, serving
from tests.integration.api.calls import CHAT, error, submit
from tests.integration.api.stand_in_worker import CHAT_MODEL, StandInWorker, generated

LANE = f"tandem.inference.{CHAT_MODEL}"


def letter(client: httpx.Client, worker: StandInWorker, **changes: object) -> str:
    """A job that has died."""
    job_id = submit(client, **changes)
    worker.bury(worker.take(), OutOfMemory("no memory for a whole minute"))
    return job_id


def claims(worker: StandInWorker) -> bool:
    """Whether a worker would get a job of the lane now."""
    return worker.jobs.claim(LANE, "asking") is not None


# Dead letters


def test_dead_letters_are_listed_in_pages_the_latest_first(client: httpx.Client, worker: StandInWorker) -> None:
    ids = []
    for _ in range(3):
        ids.append(letter(client, worker))
        time.sleep(0.002)  # they died in different milliseconds
    submit(client)
    first = client.get("/v1/dead-letters", params={"limit": 2}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (ids[:0:-1], True)
    assert first["data"][0]["failure"]["code"] == "out_of_memory"
    assert first["data"][0]["dead"] is True
    second = client.get("/v1/dead-letters", params={"limit": 2, "after": first["last_id"]}).json()
    assert ([job["id"] for job in second["data"]], second["has_more"]) == (ids[:1], False)
    unknown = client.get("/v1/dead-letters", params={"after": "job_none"})
    assert (unknown.status_code, error(unknown)["param"]) == (404, "after")


def test_a_dead_letters_work_is_done_anew_by_one_new_job(client: httpx.Client, worker: StandInWorker) -> None:
    dead_id = letter(client, worker, priority="high", metadata={"customer": "17"})
    first = client.post(f"/v1/jobs/{dead_id}/requeue")
    job = first.json()
    assert (first.status_code, first.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert (job["state"], job["attempt"], job["requeued_from"]) == ("queued", 0, dead_id)
    assert (job["priority"], job["metadata"]) == ("high", {"customer": "17"})
    again = client.post(f"/v1/jobs/{dead_id}/requeue")
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    old = client.get(f"/v1/jobs/{dead_id}").json()
    assert (old["state"], old["requeued_as"]) == ("failed", job["id"])
    assert client.get("/v1/dead-letters").json()["data"] == []
    worker.succeed(worker.take(), generated("at last"))
    assert client.get(f"/v1/jobs/{job['id']}/result").json() == generated("at last")


def test_a_job_that_is_no_dead_letter_is_not_requeued(client: httpx.Client) -> None:
    job_id = submit(client)
    answer = client.post(f"/v1/jobs/{job_id}/requeue")
    assert (answer.status_code, error(answer)["code"]) == (409, "conflict")
    assert answer.headers["x-should-retry"] == "false"
    assert "queued" in error(answer)["message"]
    assert client.post("/v1/jobs/job_none/requeue").status_code == 404


# Lanes and the service


def test_every_lane_of_the_catalogue_is_listed(client: httpx.Client) -> None:
    submit(client)
    submit(client, delay_seconds=60)
    listed = client.get("/v1/lanes").json()
    lanes = {lane["lane"]: lane for lane in listed["data"]}
    assert lanes[LANE] == {"object": "lane", "lane": LANE, "ready": 1, "paused_since": None}
    assert {"tandem.finetune." + CHAT_MODEL, "tandem.inference.all-minilm-l6-v2"} <= set(lanes)
    assert "tandem.finetune.all-minilm-l6-v2" not in lanes
    assert list(lanes) == sorted(lanes)
    assert listed["paused_since"] is None


def test_a_paused_lane_takes_jobs_and_begins_none(client: httpx.Client, worker: StandInWorker) -> None:
    running = submit(client)
    claim = worker.take()
    paused = client.post(f"/v1/lanes/{LANE}/pause").json()
    assert paused["paused_since"] == pytest.approx(time.time(), abs=5)
    assert client.post(f"/v1/lanes/{LANE}/pause").json() == paused
    waiting = submit(client)
    assert not claims(worker)
    worker.succeed(claim, generated("went on"))
    assert client.get(f"/v1/jobs/{running}").json()["state"] == "succeeded"
    assert client.post(f"/v1/lanes/{LANE}/resume").json() == paused | {"paused_since": None, "ready": 1}
    assert worker.take().job.id == waiting


def test_a_lane_that_is_not_there_is_named(client: httpx.Client) -> None:
    for action in ("pause", "resume"):
        answer = client.post(f"/v1/lanes/tandem.inference.gpt-9/{action}")
        assert (answer.status_code, error(answer)["param"]) == (404, "lane")
        assert "'tandem.inference.gpt-9'" in error(answer)["message"]
        assert "GET /v1/lanes" in error(answer)["message"]


def test_a_lane_of_a_model_that_left_the_catalogue_can_still_be_resumed(
    client: httpx.Client, services: Services
) -> None:
    """Its jobs are there, and another API process with the old catalogue may have paused it."""
    lane = "tandem.inference.org/left:v1"
    services.jobs.submit(kind="inference", model="org/left:v1", lane=lane, owner="default", spec={})
    assert client.post(f"/v1/lanes/{lane}/pause").json()["ready"] == 1
    assert client.post(f"/v1/lanes/{lane}/resume").json()["paused_since"] is None


def test_maintenance_begins_nothing_until_it_is_over(client: httpx.Client, worker: StandInWorker) -> None:
    since = client.post("/v1/service/pause").json()["paused_since"]
    assert since == pytest.approx(time.time(), abs=5)
    assert client.get("/v1/lanes").json()["paused_since"] == since
    waiting = submit(client)
    assert not claims(worker)
    assert client.post("/v1/service/resume").json() == {"object": "service", "paused_since": None}
    assert worker.take().job.id == waiting


def test_a_lane_that_was_paused_by_itself_stays_paused_after_maintenance(
    client: httpx.Client, worker: StandInWorker
) -> None:
    client.post(f"/v1/lanes/{LANE}/pause")
    client.post("/v1/service/pause")
    client.post("/v1/service/resume")
    submit(client)
    assert not claims(worker)


# A full queue


def test_a_full_queue_says_when_to_come_back_and_takes_known_keys(api_settings: ApiSettings, valkey_url: str) -> None:
    with (
        serving(api_settings.model_copy(update={"queue_limit": 2})) as url,
        client_of(url) as client,
    ):
        first = client.post("/v1/jobs", json=CHAT, headers={"Idempotency-Key": "first"})
        submit(client)
        refused = client.post("/v1/jobs", json=CHAT)
        assert (refused.status_code, error(refused)["code"]) == (QueueFull.status, "queue_full")
        assert error(refused)["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        assert "x-should-retry" not in refused.headers
        assert "limit is 2" in error(refused)["message"]
        again = client.post("/v1/jobs", json=CHAT, headers={"Idempotency-Key": "first"})
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        client.post(f"/v1/jobs/{first.json()['id']}/cancel")
        submit(client)


def test_each_key_has_its_own_limit_and_its_own_idempotency_keys(
    api_settings: ApiSettings, valkey_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        "".join(
            f'[[keys]]\nname = "{name}"\nsha256 = "{digest_of(name)}"\nmax_queued = 1\n' for name in ("ant", "bee")
        )
    )
    once = {"Idempotency-Key": "once"}
    with (
        serving(api_settings.model_copy(update={"api_keys_file": file})) as url,
        client_of(url, key="ant") as ant,
        client_of(url, key="bee") as bee,
    ):
        first = ant.post("/v1/jobs", json=CHAT, headers=once)
        refused = ant.post("/v1/jobs", json=CHAT)
        assert (refused.status_code, error(refused)["code"]) == (429, "queue_full")
        assert "this API key" in error(refused)["message"]
        others = bee.post("/v1/jobs", json=CHAT, headers=once)
        assert (first.status_code, others.status_code) == (202, 202)
        assert first.json()["id"] != others.json()["id"]
        files = [
            client.post("/v1/files", files={"file": b"x"}, data={"purpose": "batch"}, headers=once).json()["id"]
            for client in (ant, bee)
        ]
        assert files[0] != files[1]
