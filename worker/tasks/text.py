"""Tasks on texts that transformers' pipelines do."""

from typing import Any

import torch
from transformers.pipelines.base import Pipeline

from tandem.errors import UnsupportedTask
from tandem.specs.answers import QuestionAboutText, QuestionAnsweringParameters
from tandem.specs.text import TokenClassificationParameters, ZeroShotClassificationParameters
from worker.media.reader import MediaReader
from worker.tasks.decision import Decision
from worker.tasks.pipeline_task import PipelineTask
from worker.tasks.table_question_answering import TableQuestionAnswering
from worker.tasks.text_pipeline_task import TextPipelineTask
from worker.tasks.text_to_text import Summarization, Text2TextGeneration, Translation


class TokenClassification(TextPipelineTask[TokenClassificationParameters]):
    """The labelled tokens or entities of a text; a piece is a window of it."""

    def options(self, parameters: TokenClassificationParameters) -> dict[str, Any]:
        return {**super().options(parameters), "ignore_labels": list(parameters.ignore_labels)}

    def _shape(self, value: Any, inputs: dict[str, Any]) -> str:
        # Only a text's first window carries the text; the others run with it all the same.
        return super()._shape(value, inputs) if isinstance(value, torch.Tensor) else ""


class ZeroShotClassification(TextPipelineTask[ZeroShotClassificationParameters]):
    """The caller's own labels for a text; a piece is the text with one of them."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Raises UnsupportedTask: the model says of none of its labels that it is entailment."""
        super().__init__(pipeline)
        if pipeline.entailment_id == -1:  # type: ignore[attr-defined]  # ZeroShotClassificationPipeline's
            raise UnsupportedTask(
                f"{pipeline.model.name_or_path} has no label that begins with `entail`; choose a model of natural "
                "language inference."
            )

    def options(self, parameters: ZeroShotClassificationParameters) -> dict[str, Any]:
        return {**super().options(parameters), "candidate_labels": list(parameters.candidate_labels)}


class QuestionAnswering(TextPipelineTask[QuestionAnsweringParameters]):
    """Answers as they stand in a text; a piece is a window of it with the question."""

    def read(self, value: QuestionAboutText, media: MediaReader, param: str) -> dict[str, str]:  # noqa: ARG002
        return {"question": value.question, "context": value.context}


TEXT_TASKS: dict[str, type[PipelineTask[Any]]] = {
    "token-classification": TokenClassification,
    "zero-shot-classification": ZeroShotClassification,
    "question-answering": QuestionAnswering,
    "table-question-answering": TableQuestionAnswering,
    "decision": Decision,
    "summarization": Summarization,
    "translation": Translation,
    "text2text-generation": Text2TextGeneration,
}
