"""Runs fine-tuning jobs: rows in, training on the twin of the resident model, a published adapter out."""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tandem.adapters import AdapterManifest, AdapterStore, adapter_id
from tandem.files import FileStore, StoredFile
from tandem.specs import FineTuneSpec, TrainingRow
from tandem.training_rows import read_rows
from worker.attempt import Attempt
from worker.loading import ResidentModel
from worker.residency import ResidentModels
from worker.training.loop import train
from worker.training.turns import Turns


class FineTuneRunner:
    def __init__(
        self,
        residents: ResidentModels[ResidentModel],
        files: FileStore,
        adapters: AdapterStore,
        turns: Turns,
    ) -> None:
        self._residents = residents
        self._files = files
        self._adapters = adapters
        self._turns = turns

    def __call__(self, attempt: Attempt) -> dict[str, Any]:
        spec = FineTuneSpec.model_validate(attempt.job.spec)
        adapter = adapter_id(spec.model, attempt.job.owner, spec.suffix, attempt.job.id)
        # An earlier attempt may have died between publishing and finishing: its adapter stands.
        manifest = self._adapters.published(adapter)
        if manifest is None:
            with self._residents.use((spec.model, spec.task)) as resident:
                manifest = self._train(attempt, spec, adapter, resident)
        self._adapters.publish(manifest)
        return {"adapter": manifest.id, "metrics": manifest.metrics}

    def _train(self, attempt: Attempt, spec: FineTuneSpec, adapter: str, resident: ResidentModel) -> AdapterManifest:
        attempt.check()
        training, training_rows = self._rows(spec.training_file, "training_file")
        validation, validation_rows = (
            (None, None) if spec.validation_file is None else self._rows(spec.validation_file, "validation_file")
        )
        with tempfile.TemporaryDirectory(prefix="tandem-training-") as name:
            folder = Path(name)
            outcome = train(
                resident.model,
                resident.tokenizer,
                base_name=resident.entry.hub or resident.entry.name,
                training_rows=training_rows,
                validation_rows=validation_rows,
                method=spec.method,
                hyperparameters=spec.hyperparameters,
                turns=self._turns,
                on_event=lambda event: attempt.report(event["type"], _without_type(event)),
                check=attempt.check,
                folder=folder,
            )
            files = self._adapters.put_folder(folder)
        attempt.check()
        return self._adapters.publish(
            AdapterManifest(
                id=adapter,
                owner=attempt.job.owner,
                base=spec.model,
                base_revision=resident.entry.revision,
                task=spec.task,
                method=spec.method,
                job_id=attempt.job.id,
                training_data=training.digest,
                validation_data=None if validation is None else validation.digest,
                metrics=asdict(outcome),
                files={file: artifact.digest for file, artifact in files.items()},
                created_at=time.time(),
            )
        )

    def _rows(self, file_id: str, param: str) -> tuple[StoredFile, list[TrainingRow]]:
        file = self._files.get(file_id, param=param)
        return file, list(read_rows(self._files.content(file), param=param))


def _without_type(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "type"}
