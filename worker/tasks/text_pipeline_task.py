"""A pipeline's task on texts: none is run that is longer than the model."""

from typing import TypeVar

from transformers.pipelines.base import Pipeline

from tandem.errors import PromptTooLong
from tandem.specs import Spec
from worker.tasks.pipeline_task import PipelinePiece, PipelineTask
from worker.tasks.positions import input_positions

ParametersT = TypeVar("ParametersT", bound=Spec)


class TextPipelineTask(PipelineTask[ParametersT]):
    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self.max_tokens = input_positions(pipeline.model)
        """Of one piece; None where the model computes its positions."""

    def _pieces(self, value: object, parameters: ParametersT, name: str) -> list[PipelinePiece]:
        """Raises PromptTooLong, where the library's own preprocessing has not cut the text."""
        pieces = super()._pieces(value, parameters, name)
        longest = max(self.tokens(piece) for piece in pieces)
        if self.max_tokens is not None and longest > self.max_tokens:
            raise PromptTooLong(
                f"{name} has {longest} tokens; the model takes {self.max_tokens}. Shorten the text or split it.",
                param=name,
            )
        return pieces

    def tokens(self, piece: PipelinePiece) -> int:
        """In the piece's longest row."""
        length: int = piece.model_inputs["input_ids"].shape[-1]
        return length
