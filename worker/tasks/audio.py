"""Tasks on audio; speech recognition and text-to-audio are beside it."""

from collections.abc import Hashable
from typing import Any, TypeVar

import numpy as np

from tandem.specs import Media, Spec
from tandem.specs.audio import AudioClassificationParameters, ZeroShotAudioClassificationParameters
from worker.media.reader import MediaReader
from worker.tasks.audio_padding import require_frames, sound_shape, takes_padding
from worker.tasks.pipeline_task import PipelinePiece, PipelineTask
from worker.tasks.speech_recognition import SpeechRecognition
from worker.tasks.text_to_audio import TextToAudio
from worker.tasks.vision import require_short_labels

ParametersT = TypeVar("ParametersT", bound=Spec)
Samples = np.ndarray[Any, np.dtype[np.float32]]


class SoundTask(PipelineTask[ParametersT]):
    """One sound an input. It costs its samples, or the values of its spectrogram where the model hears that."""

    unit = "samples"

    def read(self, value: Media, media: MediaReader, param: str) -> Samples:
        return media.audio(value, param, sampling_rate=self.pipeline.feature_extractor.sampling_rate)


class AudioClassification(SoundTask[AudioClassificationParameters]):
    """The labels of a sound. Sounds of different lengths share a forward where the model minds no padding."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._takes_padding = takes_padding(pipeline.model)

    def _pieces(self, value: Samples, parameters: AudioClassificationParameters, name: str) -> list[PipelinePiece]:
        require_frames(self.pipeline.model, len(value), name)
        return super()._pieces(value, parameters, name)

    def _shape(self, value: Any, inputs: dict[str, Any]) -> str:
        shape = sound_shape(value, inputs) if self._takes_padding else None
        return shape or super()._shape(value, {})


class ZeroShotAudioClassification(SoundTask[ZeroShotAudioClassificationParameters]):
    """Which of the caller's labels fits a sound."""

    def _company(self, inputs: dict[str, Any], forward: dict[str, Any]) -> Hashable:
        # The library encodes the texts of a batch's first sound for all of them.
        texts = inputs["text_inputs"][0]["input_ids"].tolist()
        return (super()._company(inputs, forward), tuple(tuple(ids) for ids in texts))

    def _piece(self, item: Any, forward: dict[str, Any], postprocess: dict[str, Any]) -> PipelinePiece:
        require_short_labels(self.pipeline, item["text_inputs"][0]["input_ids"].shape[-1])
        return super()._piece(item, forward, postprocess)


AUDIO_TASKS: dict[str, type[PipelineTask[Any]]] = {
    "audio-classification": AudioClassification,
    "automatic-speech-recognition": SpeechRecognition,
    "text-to-audio": TextToAudio,
    "zero-shot-audio-classification": ZeroShotAudioClassification,
}
