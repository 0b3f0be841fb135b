"""Runs fine-tuning jobs: rows in, training on the twin of the resident model, a published adapter out.

A training's checkpoints go to the artifact store, and their digests into the job's record. From these two alone
another worker goes on, after a drain, a pause or a crash.
"""

import logging
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tandem.adapters import AdapterManifest, AdapterStore, Served, adapter_id
from tandem.artifacts import ArtifactStore
from tandem.errors import Draining, Paused, QueueUnavailable, UnknownArtifact
from tandem.files import FileStore, StoredFile
from tandem.specs import FineTuneSpec, TrainingRow
from tandem.specs.finetune import RESIDENT_TASK, FineTuneTask
from tandem.training_rows import labels_of, read_rows
from worker.attempt import Attempt
from worker.loading import ResidentModel
from worker.residency import ResidentModels
from worker.stall import StallWatch
from worker.training.checkpoint import CHECKPOINT_FILES
from worker.training.loop import train
from worker.training.turns import Turns

log = logging.getLogger(__name__)

RECORD_SECONDS = 5.0
"""How long a stopping training tries to record its last checkpoint while Redis is away. Without it the job goes on
from the one before, so this is shorter than what a drain allows runners to end."""
RECORD_RETRY_SECONDS = 0.25
"""Between these tries: a server that fails over is back after seconds."""
QUIET_SECONDS = 600.0
"""A training that does not ask for so long whether it must stop stands still: a micro step takes seconds, the
encoding of a large file minutes."""


class FineTuneRunner:
    def __init__(
        self,
        residents: ResidentModels[ResidentModel],
        files: FileStore,
        adapters: AdapterStore,
        artifacts: ArtifactStore,
        turns: Turns,
        stalls: StallWatch,
    ) -> None:
        self._residents = residents
        self._files = files
        self._adapters = adapters
        self._artifacts = artifacts
        self._turns = turns
        self._stalls = stalls

    def __call__(self, attempt: Attempt) -> dict[str, Any]:
        spec = FineTuneSpec.model_validate(attempt.job.spec)
        adapter = adapter_id(spec.model, attempt.job.owner, spec.suffix, attempt.job.id)
        # An earlier attempt may have died between publishing and finishing: its adapter stands.
        manifest = self._adapters.published(adapter)
        if manifest is None:
            with self._residents.use((spec.model, RESIDENT_TASK[spec.task])) as resident:
                manifest = self._train(attempt, spec, adapter, resident)
        self._adapters.publish(manifest)
        return {"adapter": manifest.id, "served": manifest.served, "metrics": manifest.metrics}

    def _train(self, attempt: Attempt, spec: FineTuneSpec, adapter: str, resident: ResidentModel) -> AdapterManifest:
        attempt.check()
        training, training_rows = self._rows(spec.training_file, spec.task, "training_file")
        validation, validation_rows = (
            (None, None)
            if spec.validation_file is None
            else self._rows(spec.validation_file, spec.task, "validation_file")
        )
        checkpoints = JobCheckpoints(attempt, self._artifacts)
        assert resident.tokenizer is not None, "what is learned, is learned from texts"
        with (
            tempfile.TemporaryDirectory(prefix="tandem-training-") as name,
            self._stalls.watch_calls(
                f"training of {attempt.job.id}", attempt.check, limit_seconds=QUIET_SECONDS
            ) as check,
        ):
            folder = Path(name) / "adapter"
            try:
                outcome = train(
                    resident.model,
                    resident.tokenizer,
                    task=spec.task,
                    base_name=resident.entry.hub or resident.entry.name,
                    base_revision=resident.entry.revision,
                    training_rows=training_rows,
                    validation_rows=validation_rows,
                    method=spec.method,
                    hyperparameters=spec.hyperparameters,
                    turns=self._turns,
                    on_event=lambda event: attempt.report(event["type"], _without_type(event)),
                    check=check,
                    folder=folder,
                    resume_from=checkpoints.fetch(Path(name) / "checkpoint"),
                    on_checkpoint=checkpoints.store,
                )
            except (Draining, Paused):
                checkpoints.record_late()
                raise
            files = self._adapters.put_folder(folder)
        attempt.check()
        self._keep_data(training, validation)
        return self._adapters.publish(
            AdapterManifest(
                id=adapter,
                owner=attempt.job.owner,
                base=spec.model,
                base_revision=resident.entry.revision,
                task=spec.task,
                labels=labels_of(spec.task, training_rows),
                method=spec.method,
                job_id=attempt.job.id,
                training_data=training.digest,
                validation_data=None if validation is None else validation.digest,
                metrics=asdict(outcome),
                served=_served(spec.task, resident),
                files={file: artifact.digest for file, artifact in files.items()},
                created_at=time.time(),
            )
        )

    def _keep_data(self, *files: StoredFile | None) -> None:
        """The manifest refers to the data from now on, which may be old: no collector takes it meanwhile."""
        for file in files:
            if file is not None:
                with suppress(
                    UnknownArtifact
                ):  # deleted by its owner during the training: the manifest names it only
                    self._artifacts.refresh(file.digest)

    def _rows(self, file_id: str, task: FineTuneTask, param: str) -> tuple[StoredFile, list[TrainingRow]]:
        file = self._files.get(file_id, param=param)
        return file, list(read_rows(self._files.content(file), task, param=param))


class JobCheckpoints:
    """The checkpoints of one attempt's training: files in the artifact store, their digests in the job's record."""

    def __init__(self, attempt: Attempt, artifacts: ArtifactStore) -> None:
        self._attempt = attempt
        self._artifacts = artifacts
        self._unrecorded: dict[str, Any] | None = None

    def fetch(self, folder: Path) -> Path | None:
        """Write what an earlier attempt has left into a new folder; None if it left nothing that is still there."""
        checkpoint = self._attempt.job.checkpoint
        if checkpoint is None:
            return None
        folder.mkdir()
        try:
            # Only the files that a checkpoint has: names in a record choose no path here.
            for name in CHECKPOINT_FILES:
                self._artifacts.fetch(checkpoint["files"][name], folder / name)
        except (KeyError, UnknownArtifact) as error:
            log.warning("%s: its checkpoint is gone: %s", self._attempt.job.id, error)
            self._attempt.report(
                "warning", {"message": f"the training starts anew, without its checkpoint: {error} is gone"}
            )
            return None
        return folder

    def store(self, folder: Path, step: int) -> None:
        """Keep a checkpoint in place of the one before.

        Raises Superseded, QueueUnavailable, and whatever the artifact store's file system does.
        """
        files = {name: self._artifacts.put_file(folder / name).digest for name in CHECKPOINT_FILES}
        self._unrecorded = {"step": step, "files": files}
        self._record()

    def record_late(self) -> None:
        """Before the job goes back to its queue: record the last checkpoint if Redis was away when it was stored.

        Raises Superseded.
        """
        give_up_at = time.monotonic() + RECORD_SECONDS
        while self._unrecorded is not None:
            try:
                self._record()
            except QueueUnavailable as error:
                if time.monotonic() >= give_up_at:
                    log.warning("%s: its last checkpoint is not recorded: %s", self._attempt.job.id, error.message)
                    return
                time.sleep(RECORD_RETRY_SECONDS)  # nothing signals that Redis is back

    def _record(self) -> None:
        assert self._unrecorded is not None
        self._attempt.save_checkpoint(self._unrecorded)
        self._attempt.report("checkpoint", {"step": self._unrecorded["step"]})
        self._unrecorded = None


def _served(task: FineTuneTask, resident: ResidentModel) -> Served:
    """The engine mixes every method's adapters, and so do encoders; the library's generate() takes none."""
    return "not-served" if task == "text-generation" and resident.engine is None else "mixed-batch"


def _without_type(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "type"}
