"""What the records of files, adapters and jobs refer to survives a collection over real stores."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tandem.adapters import AdapterManifest
from tandem.artifacts import GRACE_SECONDS
from tandem.cli import app
from tandem.collecting import collect_artifacts
from tandem.errors import ConfigurationError, UnknownArtifact
from tandem.services import Services
from tandem.settings import Settings
from tandem.specs import LoraMethod


@pytest.fixture
def service_settings(valkey_url: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=valkey_url, artifacts_url=f"file://{tmp_path}")


@pytest.fixture
def services(service_settings: Settings) -> Iterator[Services]:
    services = Services.connect(service_settings)
    yield services
    services.jobs.close()


def grow_old(folder: Path) -> None:
    then = time.time() - GRACE_SECONDS - 60
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def manifest_of(services: Services, files: dict[str, str], training_data: str) -> AdapterManifest:
    return AdapterManifest(
        id="ft:m:default:a:01234567",
        owner="default",
        base="m",
        base_revision=None,
        task="text-generation",
        method=LoraMethod(),
        job_id="job_0123456789abcdef01234567",
        training_data=training_data,
        validation_data=services.artifacts.put(b"validation").digest,
        metrics={},
        files=files,
        created_at=time.time(),
    )


def gc(settings: Settings, *arguments: str) -> str:
    environment = {"TANDEM_REDIS_URL": settings.redis_url, "TANDEM_ARTIFACTS_URL": settings.artifacts_url}
    ended = CliRunner(env=environment).invoke(app, ["gc", *arguments])
    assert ended.exit_code == 0, ended.output
    return ended.stdout.strip()


def test_only_what_no_record_refers_to_is_deleted(
    services: Services, service_settings: Settings, tmp_path: Path
) -> None:
    file = services.files.create([b"rows"], filename="f.jsonl", purpose="fine-tune", owner="default", limit=100)
    weights = services.artifacts.put(b"weights").digest
    adapter = services.adapters.publish(manifest_of(services, {"weights": weights}, file.digest))
    spec = {"inputs": "x" * 100_000}
    job = services.jobs.submit(kind="inference", model="m", lane="inference:m", owner="default", spec=spec).job
    services.artifacts.put(b"unused")
    grow_old(tmp_path)

    assert gc(service_settings, "--dry-run") == "would delete 1 (6 B), kept 4"
    assert gc(service_settings) == "deleted 1 (6 B), kept 4"
    assert b"".join(services.files.content(file)) == b"rows"
    assert services.artifacts.read(adapter.files["weights"]) == b"weights"
    assert services.artifacts.read(str(adapter.validation_data)) == b"validation"
    assert services.jobs.get(job.id).spec == spec

    # The adapter's manifest still refers to the data that it was trained on.
    services.files.delete(file.id)
    assert gc(service_settings) == "deleted 0 (0 B), kept 4"
    services.adapters.delete(adapter.id)
    assert gc(service_settings) == "deleted 3 (21 B), kept 1"


def test_an_adapter_is_referred_to_by_its_document_though_redis_lost_its_index(
    services: Services, service_settings: Settings, tmp_path: Path
) -> None:
    weights = services.artifacts.put(b"weights").digest
    services.adapters.publish(manifest_of(services, {"weights": weights}, weights))
    services.jobs.redis.flushall()
    grow_old(tmp_path)
    assert gc(service_settings) == "deleted 0 (0 B), kept 2"


def test_publishing_makes_an_adapters_files_young_and_needs_them(services: Services, tmp_path: Path) -> None:
    """An attempt that resumed may have put them more than a grace ago."""
    weights = services.artifacts.put(b"weights").digest
    grow_old(tmp_path)
    services.adapters.publish(manifest_of(services, {"weights": weights}, weights))
    modified = {blob.name: blob.modified for blob in services.artifacts.blobs()}
    assert modified[weights] > time.time() - 60
    with pytest.raises(UnknownArtifact):
        services.adapters.publish(manifest_of(services, {"weights": "0" * 64}, weights))


def test_more_files_than_are_read_at_once_all_count(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tandem.files.READ_AT_ONCE", 2)
    digests = [
        services.files.create([content], filename="f", purpose="batch", owner="default", limit=10).digest
        for content in (b"1", b"2", b"3", b"4", b"5")
    ]
    assert list(services.files.artifact_references()) == digests


def test_a_store_of_another_queue_is_left_alone(
    services: Services, service_settings: Settings, tmp_path: Path
) -> None:
    """The records of the queue that it belongs to are not to be seen from here."""
    services.artifacts.put(b"the other queue's")
    grow_old(tmp_path)
    gc(service_settings, "--dry-run")
    services.jobs.redis.flushdb()
    with pytest.raises(ConfigurationError, match="the store of another queue"):
        collect_artifacts(services)
