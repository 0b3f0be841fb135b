"""text-classification: a score for each of the model's labels."""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from tandem.specs import ClassificationParameters
from tandem.specs.encoders import TextPair
from worker.tasks.encoder_task import EncodedText, EncoderTask


class LabelScore(TypedDict):
    label: str
    score: float


class TextClassification(EncoderTask[ClassificationParameters, list[LabelScore]]):
    """The labels of a text, or of a pair of texts, with their scores, best first."""

    def run_rows(self, rows: Sequence[EncodedText]) -> Tensor:
        """Logits [rows, labels]."""
        with torch.inference_mode():
            logits: Tensor = self.model(**self.pad(rows)).logits
        return logits.float().cpu()

    def row_result(self, output: Tensor, _row: EncodedText, parameters: ClassificationParameters) -> list[LabelScore]:
        match parameters.function_to_apply or function_of_model(self.model.config):
            case "softmax":
                scores = output.softmax(dim=-1)
            case "sigmoid":
                scores = output.sigmoid()
            case _:
                scores = output
        labels = self.model.config.id2label
        found = [LabelScore(label=labels[index], score=score) for index, score in enumerate(scores.tolist())]
        found.sort(key=lambda entry: entry["score"], reverse=True)
        return found[: parameters.top_k]

    def _tokenize(self, texts: Sequence[str | TextPair]) -> Any:
        """As the base does, with pairs among the texts: the tokenizer takes these in a call of their own."""
        single = [text for text in texts if isinstance(text, str)]
        paired = [text for text in texts if isinstance(text, TextPair)]
        if not paired:
            return self.tokenize_columns(single)
        of_pairs = self.tokenize_columns([pair.text for pair in paired], [pair.text_pair for pair in paired])
        if not single:
            return of_pairs
        of_singles = self.tokenize_columns(single)
        encoded = {}
        for name in of_pairs:
            left, right = iter(of_singles[name]), iter(of_pairs[name])
            encoded[name] = [next(left if isinstance(text, str) else right) for text in texts]
        return encoded


def function_of_model(config: Any) -> str:
    """How the library makes scores of a classifier's outputs, by what its configuration says of its labels."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"
