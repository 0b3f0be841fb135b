"""Tasks on several kinds of input at once; those on pages and conversations are beside it."""

from typing import Any

import torch

from tandem.errors import PromptTooLong
from tandem.specs import Media
from tandem.specs.multimodal import ImageQuestion, ImageToTextParameters, VisualQuestionAnsweringParameters
from worker.media.reader import MediaReader
from worker.tasks.conversation import AnyToAny, ImageTextToText
from worker.tasks.document_question_answering import DocumentQuestionAnswering
from worker.tasks.generating_task import GeneratingTask, require_places, writing_positions
from worker.tasks.pipeline_task import PipelinePiece, PipelineTask
from worker.tasks.positions import input_positions


class VisualQuestionAnswering(PipelineTask[VisualQuestionAnsweringParameters]):
    """Answers to a question about an image.

    Only images of one size share a forward: in a batch of several sizes ViLT looks at places of the padding, drawn by
    chance. Questions of different lengths do, but not of a model that writes after them.
    """

    unit = "pixels"
    generates = True

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._writes: bool = pipeline.model.can_generate()
        self._max_tokens = input_positions(pipeline.model)

    def read(self, value: ImageQuestion, media: MediaReader, param: str) -> dict[str, Any]:
        return {"image": media.image(value.image, f"{param}.image"), "question": value.question}

    def cost(self, model_inputs: dict[str, Any]) -> int:
        return _largest(model_inputs)

    def stopping(self, options: dict[str, Any], criteria: Any) -> dict[str, Any]:
        return super().stopping(options, criteria) if self._writes else options

    def _pieces(
        self, value: dict[str, Any], parameters: VisualQuestionAnsweringParameters, name: str
    ) -> list[PipelinePiece]:
        pieces = super()._pieces(value, parameters, name)
        tokens = pieces[0].model_inputs["input_ids"].shape[-1]
        if self._max_tokens is not None and tokens > self._max_tokens:
            raise PromptTooLong(
                f"the question of {name} has {tokens} tokens; the model takes {self._max_tokens}: shorten it, or set "
                "`parameters.truncation`",
                param=f"{name}.question",
            )
        return pieces

    def _shape(self, value: Any, inputs: dict[str, Any]) -> str:
        return super()._shape(value, {} if self._writes else inputs)


class ImageToText(GeneratingTask[ImageToTextParameters]):
    """What is seen, or written, in an image. Images of one size after preprocessing share a forward."""

    unit = "pixels"
    tokenizer_pads = False

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._places = writing_positions(pipeline.model)

    def read(self, value: Media, media: MediaReader, param: str) -> Any:
        return media.image(value, param)

    def cost(self, model_inputs: dict[str, Any]) -> int:
        return _largest(model_inputs)

    def _pieces(self, value: Any, parameters: ImageToTextParameters, name: str) -> list[PipelinePiece]:
        pieces = super()._pieces(value, parameters, name)
        require_places(self, pieces[0], self._places, name)
        return pieces


def _largest(model_inputs: dict[str, Any]) -> int:
    """Elements of the largest tensor: pixels · channels."""
    return max([1, *(value.numel() for value in model_inputs.values() if isinstance(value, torch.Tensor))])


MULTIMODAL_TASKS: dict[str, type[PipelineTask[Any]]] = {
    "document-question-answering": DocumentQuestionAnswering,
    "visual-question-answering": VisualQuestionAnswering,
    "image-to-text": ImageToText,
    "image-text-to-text": ImageTextToText,
    "any-to-any": AnyToAny,
}
