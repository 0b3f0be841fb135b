"""The two files of a training: encoded before any time of the device, and reported on."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tandem.specs import Hyperparameters, TrainingRow
from worker.training.arguments import optimizer_steps
from worker.training.data import DataReport, EncodedData
from worker.training.encoding import leaked_rows
from worker.training.objectives import Objective
from worker.training.packing import PackedExamples, packs


@dataclass(frozen=True, slots=True)
class TrainingFiles:
    training: EncodedData
    validation: EncodedData | None
    leaked_rows: int
    """Validation rows that are training rows too."""

    def steps(self, hyperparameters: Hyperparameters) -> int:
        """Optimizer steps of the training."""
        return optimizer_steps(len(self.training.examples), hyperparameters)

    def event(self, hyperparameters: Hyperparameters) -> dict[str, Any]:
        """The report as an event. How long the training takes is known when some steps have been measured."""
        return {
            "type": "data",
            "training": _plain(self.training.report),
            "validation": None if self.validation is None else _plain(self.validation.report),
            "leaked_rows": self.leaked_rows,
            "examples": len(self.training.examples),
            "steps": self.steps(hyperparameters),
            "eta_seconds": None,
        }


def _plain(report: DataReport) -> dict[str, Any]:
    return {**asdict(report), "errors": [asdict(error) for error in report.errors]}


def encode_files(
    objective: Objective,
    training_rows: Iterable[TrainingRow],
    validation_rows: Iterable[TrainingRow] | None,
    hyperparameters: Hyperparameters,
    folder: Path,
    check: Callable[[], None],
) -> TrainingFiles:
    """Encode both files into `folder`, where they must stay as long as they are used.

    Raises InvalidTrainingData, and what `check` raises, which is called now and then.
    """
    training = objective.encode(training_rows, folder=folder, check=check)
    if hyperparameters.packing:
        plan = packs(training.lengths, hyperparameters.max_tokens)
        training = replace(training, examples=PackedExamples(training.examples, plan))
    validation = None
    if validation_rows is not None:
        validation = objective.encode(validation_rows, param="validation_file", folder=folder, check=check)
    return TrainingFiles(training, validation, 0 if validation is None else leaked_rows(training, validation))
