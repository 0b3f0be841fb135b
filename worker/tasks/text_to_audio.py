"""text-to-audio: a text spoken, or music made to it."""

from typing import Any

import torch
from transformers import StoppingCriteriaList

from tandem.errors import InvalidModel, InvalidRequest, PromptTooLong
from tandem.specs.audio import TextToAudioParameters
from worker.media.encode import WAV, wav
from worker.tasks.generating_task import NestedGeneratingTask
from worker.tasks.pipeline_task import PipelinePiece
from worker.tasks.positions import input_positions
from worker.tasks.result_files import ResultFiles


class TextToAudio(NestedGeneratingTask[TextToAudioParameters]):
    """A WAV file.

    Texts run one by one: the convolutions of VITS hear the padding of a batch, and most other models draw what they
    say.
    """

    together = False

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        if pipeline.sampling_rate is None:
            raise InvalidModel("the model's configuration names no sampling rate for its sound", param="model")
        self._writes: bool = pipeline.model.can_generate()
        self._max_tokens = input_positions(pipeline.model)

    def options(self, parameters: TextToAudioParameters) -> dict[str, Any]:
        options = super().options(parameters)
        speaker = options.pop("speaker_embeddings", None), options.pop("speaker_id", None)
        forward = {
            "speaker_embeddings": None if speaker[0] is None else torch.tensor([speaker[0]]),
            "speaker_id": speaker[1],
        }
        return {**options, "forward_params": {name: value for name, value in forward.items() if value is not None}}

    def stopping(self, options: dict[str, Any], criteria: StoppingCriteriaList) -> dict[str, Any]:
        return super().stopping(options, criteria) if self._writes else options

    def present(self, result: Any, files: ResultFiles) -> Any:
        rate = int(result["sampling_rate"])
        audio = result["audio"]
        several = isinstance(audio, list)
        stored = [files.add(wav(samples, rate), WAV) for samples in (audio if several else [audio])]
        return {"audio": stored if several else stored[0], "sampling_rate": rate}

    def _pieces(self, value: str, parameters: TextToAudioParameters, name: str) -> list[PipelinePiece]:
        self._require_fitting_voice(parameters)
        if not self._writes and parameters.generation_parameters.model_dump(exclude_none=True):
            raise InvalidRequest(
                "the model makes its sound in one step; leave out `parameters.generation_parameters`",
                param="parameters.generation_parameters",
            )
        pieces = super()._pieces(value, parameters, name)
        tokens = pieces[0].model_inputs.get("input_ids")
        if tokens is not None and self._max_tokens is not None and tokens.shape[-1] > self._max_tokens:
            raise PromptTooLong(
                f"{name} has {tokens.shape[-1]} tokens; the model takes {self._max_tokens}: split the text",
                param=name,
            )
        return pieces

    def _require_fitting_voice(self, parameters: TextToAudioParameters) -> None:
        config = self.pipeline.model.config
        speakers = getattr(config, "num_speakers", 1)
        if parameters.speaker_id is not None and parameters.speaker_id >= speakers:
            raise InvalidRequest(
                f"the model has {speakers} speaker(s), counted from 0; `parameters.speaker_id` is "
                f"{parameters.speaker_id}",
                param="parameters.speaker_id",
            )
        size = getattr(config, "speaker_embedding_dim", None) if config.model_type == "speecht5" else None
        if size is None and parameters.speaker_embeddings is not None:
            raise InvalidRequest(
                "the model takes no vector of a voice; leave out `parameters.speaker_embeddings`",
                param="parameters.speaker_embeddings",
            )
        if size is not None and len(parameters.speaker_embeddings or ()) != size:
            raise InvalidRequest(
                f"the model needs the voice as `parameters.speaker_embeddings`, {size} numbers",
                param="parameters.speaker_embeddings",
            )
