"""Runs fine-tuning jobs: rows in, training on the twin of the resident model, a published adapter out.

A training's checkpoints go to the artifact store, and their digests into the job's record. From these two alone
another worker goes on, after a drain, a pause or a crash.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tandem.adapters import AdapterManifest, AdapterStore, Served, adapter_id
from tandem.artifacts import ArtifactStore
from tandem.errors import Draining, InvalidRequest, Paused, UnknownArtifact
from tandem.files import FileStore, StoredFile
from tandem.specs import FineTuneSpec
from tandem.specs.finetune import ENCODER_ADAPTER_TASKS, RESIDENT_TASK, TEXT_TO_TEXT, FineTuneTask
from tandem.specs.methods import AdaLoraMethod, AnyMethod, LohaMethod, LoraMethod, VeraMethod
from tandem.training_rows import RowFile, labels_of
from worker.apart import ApartAdapter, read_served
from worker.attempt import Attempt
from worker.residency import ResidentModels
from worker.resident_model import ResidentModel
from worker.runners.training_checkpoints import JobCheckpoints, PublishedCheckpoints
from worker.stall import StallWatch
from worker.training.checkpoint import history_in
from worker.training.curve import loss_picture, loss_table
from worker.training.loop import train
from worker.training.room import TrainingRoom
from worker.training.turns import Turns

LABELLED_TASKS = ("text-classification", "token-classification")
"""Tasks whose rows have labels that an adapter's manifest names."""
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
        *,
        adapter_rank: int,
        room: TrainingRoom | None = None,
    ) -> None:
        """`adapter_rank`: of the batch's adapter slots, by which an adapter's way to be served is told. `room`: the
        memory that trainings share; None sets no limit."""
        self._residents = residents
        self._files = files
        self._adapters = adapters
        self._artifacts = artifacts
        self._turns = turns
        self._stalls = stalls
        self._adapter_rank = adapter_rank
        self._room = room or TrainingRoom()

    def __call__(self, attempt: Attempt) -> dict[str, Any]:
        spec = FineTuneSpec.model_validate(attempt.job.spec)
        adapter = adapter_id(spec.model, attempt.job.owner, spec.suffix, attempt.job.id)
        # An earlier attempt may have died between publishing and finishing: its adapter stands.
        manifest = self._adapters.published(adapter)
        if manifest is None:
            with self._residents.use((spec.model, RESIDENT_TASK[spec.task])) as resident:
                manifest = self._train(attempt, spec, adapter, resident)
        self._adapters.publish(manifest)
        return {
            "adapter": manifest.id,
            "served": manifest.served,
            "metrics": manifest.metrics,
            "files": manifest.result_files,
            "checkpoints": list(manifest.checkpoints),
        }

    def _train(self, attempt: Attempt, spec: FineTuneSpec, adapter: str, resident: ResidentModel) -> AdapterManifest:
        attempt.check()
        self._refuse_unserved(spec)
        training, training_rows = self._rows(spec, spec.training_file, "training_file")
        validation, validation_rows = (
            (None, None)
            if spec.validation_file is None
            else self._rows(spec, spec.validation_file, "validation_file")
        )
        labels = labels_of(spec.task, training_rows) if spec.task in LABELLED_TASKS else ()

        def manifest(name: str, folder: Path, metrics: dict[str, Any]) -> AdapterManifest:
            files = self._adapters.put_folder(folder)
            return AdapterManifest(
                id=name,
                owner=attempt.job.owner,
                base=spec.model,
                base_revision=resident.entry.revision,
                task=spec.task,
                labels=labels,
                method=spec.method,
                job_id=attempt.job.id,
                training_data=training.digest,
                validation_data=None if validation is None else validation.digest,
                metrics=metrics,
                served=self._served(spec.task, name, folder, resident),
                files={file: artifact.digest for file, artifact in files.items()},
                created_at=time.time(),
            )

        checkpoints = JobCheckpoints(attempt, self._artifacts)
        published = PublishedCheckpoints(
            self._adapters, adapter, attempt, limit=spec.save_total_limit, manifest=manifest
        )
        course: list[dict[str, Any]] = []
        attempt.leave(lambda: {"files": self._result_files(attempt, adapter, course)} if course else None)
        assert resident.tokenizer is not None, "what is learned, is learned from texts"
        with (
            tempfile.TemporaryDirectory(prefix="tandem-training-") as name,
            self._stalls.watch_calls(
                f"training of {attempt.job.id}", attempt.check, limit_seconds=QUIET_SECONDS
            ) as check,
        ):
            folder = Path(name) / "adapter"
            resume_from = checkpoints.fetch(Path(name) / "checkpoint")

            def note(event: dict[str, Any]) -> None:
                if event["type"] == "resumed":
                    assert resume_from is not None
                    course.extend(history_in(resume_from))
                elif event["type"] in ("metrics", "evaluation"):
                    course.append(event)
                attempt.report(event["type"], _without_type(event))

            try:
                outcome = train(
                    resident.model,
                    resident.tokenizer,
                    task=spec.task,
                    learning=spec.objective,
                    base_name=resident.entry.hub or resident.entry.name,
                    base_revision=resident.entry.revision,
                    training_rows=training_rows,
                    validation_rows=validation_rows,
                    method=spec.method,
                    hyperparameters=spec.hyperparameters,
                    turns=self._turns,
                    on_event=note,
                    check=check,
                    folder=folder,
                    resume_from=resume_from,
                    on_checkpoint=checkpoints.store,
                    on_adapter=published.publish if spec.publish_checkpoints else None,
                    report_to=spec.report_to,
                    room=self._room,
                )
            except (Draining, Paused):
                checkpoints.record_late()
                raise
            made = manifest(adapter, folder, asdict(outcome))
        attempt.check()
        self._keep_data(training, validation)
        return self._adapters.publish(
            made.model_copy(
                update={
                    "result_files": self._result_files(attempt, adapter, outcome.history),
                    "checkpoints": tuple(published.listed()),
                }
            )
        )

    def _result_files(self, attempt: Attempt, adapter: str, history: Sequence[dict[str, Any]]) -> dict[str, str]:
        """The loss as a table and as a picture, stored as files of the job's owner: name → file id."""
        contents = {"metrics.csv": loss_table(history), "loss.png": loss_picture(history, adapter)}
        return {
            name: self._files.create(
                [content],
                filename=f"{attempt.job.id}-{name}",
                purpose="fine-tune-results",
                owner=attempt.job.owner,
                limit=len(content),
            ).id
            for name, content in contents.items()
        }

    def _refuse_unserved(self, spec: FineTuneSpec) -> None:
        """Raises InvalidRequest for more ranks than a slot has, where nothing serves an adapter apart."""
        rank = _rank(spec.method)
        if spec.task in ENCODER_ADAPTER_TASKS and rank > self._adapter_rank:
            raise InvalidRequest(
                f"{spec.method.type} of rank {rank} could not be served: adapters for {spec.task} share batches, "
                f"whose slots hold {self._adapter_rank}. Lower it, or raise TANDEM_ADAPTER_RANK.",
                param="method",
            )

    def _served(self, task: FineTuneTask, adapter: str, folder: Path, resident: ResidentModel) -> Served:
        """Encoders mix what they learn. The library's generate() serves encoder-decoders, one adapter at a time, and
        language models that the engine does not hold, without any."""
        if task in ENCODER_ADAPTER_TASKS:
            return "mixed-batch"
        if task in TEXT_TO_TEXT:
            return "apart"
        if resident.engine is None:
            return "not-served"
        read = read_served(adapter, folder, resident.model, rank_limit=self._adapter_rank)
        return "apart" if isinstance(read, ApartAdapter) else "mixed-batch"

    def _keep_data(self, *files: StoredFile | None) -> None:
        """The manifest refers to the data from now on, which may be old: no collector takes it meanwhile."""
        for file in files:
            if file is not None:
                with suppress(
                    UnknownArtifact
                ):  # deleted by its owner during the training: the manifest names it only
                    self._artifacts.refresh(file.digest)

    def _rows(self, spec: FineTuneSpec, file_id: str, param: str) -> tuple[StoredFile, RowFile]:
        file = self._files.get(file_id, param=param)
        rows = RowFile(
            lambda: self._files.content(file),
            spec.task,
            objective=spec.objective.type,
            param=param,
            on_broken_row=spec.on_broken_row,
        )
        return file, rows


def _rank(method: AnyMethod) -> int:
    """The ranks that a layer's update takes in a slot; 0 where the method has none, or the layers' sizes decide."""
    match method:
        case LoraMethod() | VeraMethod():
            return method.r
        case AdaLoraMethod():
            return method.init_r
        case LohaMethod():
            return method.r**2
        case _:
            return 0


def _without_type(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "type"}
