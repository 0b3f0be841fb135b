"""text-classification: a score for each of the model's labels."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from tandem.specs import ClassificationParameters
from worker.tasks.encoder_task import EncodedText, EncoderTask


class LabelScore(TypedDict):
    label: str
    score: float


class TextClassification(EncoderTask[ClassificationParameters, list[LabelScore]]):
    """The labels of a text with their scores, best first."""

    def forward(self, rows: Sequence[EncodedText]) -> Tensor:
        """Logits [rows, labels]."""
        with torch.inference_mode():
            logits: Tensor = self.model(**self.pad(rows)).logits
        return logits.float().cpu()

    def result(self, output: Tensor, _row: EncodedText, parameters: ClassificationParameters) -> list[LabelScore]:
        match parameters.function_to_apply:
            case "softmax":
                scores = output.softmax(dim=-1)
            case "sigmoid":
                scores = output.sigmoid()
            case "none":
                scores = output
        labels = self.model.config.id2label
        found = [LabelScore(label=labels[index], score=score) for index, score in enumerate(scores.tolist())]
        found.sort(key=lambda entry: entry["score"], reverse=True)
        return found[: parameters.top_k]
