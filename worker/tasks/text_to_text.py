"""summarization, translation and text2text-generation: an encoder-decoder writes a text for a text.

The pipelines are our own (worker/pipelines): version 5 of the library dropped them.
"""

from typing import Any, TypeVar

from transformers.pipelines.base import Pipeline

from tandem.errors import InvalidRequest
from tandem.specs.text_to_text import TextToTextParameters, TranslationParameters
from worker.tasks.generating_task import GeneratingTask, with_written_cost
from worker.tasks.pipeline_task import PipelinePiece
from worker.tasks.positions import written_positions
from worker.tasks.text_pipeline_task import TextPipelineTask
from worker.tasks.written_tokens import written_tokens

ParametersT = TypeVar("ParametersT", bound=TextToTextParameters)


class TextToText(GeneratingTask[ParametersT], TextPipelineTask[ParametersT]):
    """The texts written for a text: one, or as many as `num_return_sequences` asks for. Sampled ones run alone."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self._max_written = written_positions(pipeline.model)

    def options(self, parameters: ParametersT) -> dict[str, Any]:
        asked = parameters.model_dump(exclude_none=True)
        generate = asked.pop("generate_parameters")
        return {**asked, **generate}

    def _pieces(self, value: object, parameters: ParametersT, name: str) -> list[PipelinePiece]:
        pieces = super()._pieces(value, parameters, name)
        written = written_tokens(self.pipeline, pieces[0].forward_options)
        if self._max_written is not None and written > self._max_written:
            raise InvalidRequest(
                f"the model writes up to {self._max_written} tokens, not {written}; set "
                "`parameters.generate_parameters.max_new_tokens` to fewer",
                param="parameters.generate_parameters.max_new_tokens",
            )
        return pieces

    def _piece(self, item: Any, forward: dict[str, Any], postprocess: dict[str, Any]) -> PipelinePiece:
        return with_written_cost(self, super()._piece(item, forward, postprocess))


class Summarization(TextToText[TextToTextParameters]):
    """Summaries of a text."""


class Text2TextGeneration(TextToText[TextToTextParameters]):
    """What a model makes of a text."""


class Translation(TextToText[TranslationParameters]):
    """Translations of a text; languages are set in the tokenizer while it encodes, and in the forward's options."""
