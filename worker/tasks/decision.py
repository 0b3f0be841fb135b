"""decision: a probability for every option of the questions about a state."""

from typing import Any

from transformers.pipelines.base import Pipeline

from tandem.errors import InvalidRequest
from tandem.specs.answers import DecisionParameters, DecisionRequest
from worker.media.reader import MediaReader
from worker.tasks.pipeline_task import PipelinePiece
from worker.tasks.text_pipeline_task import TextPipelineTask


class Decision(TextPipelineTask[DecisionParameters]):
    """The answers to a request's questions, by name; the library reads their prompts one after another."""

    together = False

    def read(self, value: DecisionRequest, media: MediaReader, param: str) -> dict[str, Any]:
        # An option may be None, which only names it; a field that is None is not there.
        questions = {
            name: {field: content for field, content in question.model_dump().items() if content is not None}
            for name, question in value.questions.items()
        }
        request: dict[str, Any] = {"state": value.state, "questions": questions}
        if not value.assets:
            return request
        if not _sees_images(self.pipeline):
            raise InvalidRequest(f"the model sees no images: send no `{param}.assets`", param=f"{param}.assets")
        assets = {name: media.image(image, f"{param}.assets.{name}") for name, image in value.assets.items()}
        return {**request, "assets": assets}

    def cost(self, model_inputs: dict[str, Any]) -> int:
        return sum(int(inputs["input_ids"].shape[-1]) for inputs, _ in model_inputs["prompts"])

    def tokens(self, piece: PipelinePiece) -> int:
        return max(int(inputs["input_ids"].shape[-1]) for inputs, _ in piece.model_inputs["prompts"])


def _sees_images(pipeline: Pipeline) -> bool:
    return getattr(pipeline.processor, "image_processor", None) is not None
