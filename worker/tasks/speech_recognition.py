"""automatic-speech-recognition: the text of a recording, by a CTC model or one that writes, such as Whisper."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from transformers import StoppingCriteriaList

from tandem.errors import InvalidRequest
from tandem.specs import Media
from tandem.specs.audio import AutomaticSpeechRecognitionParameters
from worker.media.reader import MediaReader
from worker.tasks.audio_padding import frames_heard, require_frames, sound_shape, takes_padding
from worker.tasks.generating_task import GeneratingTask, require_places, writing_positions
from worker.tasks.pipeline_task import PipelinePiece

Samples = np.ndarray[Any, np.dtype[np.float32]]


class SpeechRecognition(GeneratingTask[AutomaticSpeechRecognitionParameters]):
    """The text, and the times of its parts where asked for. The pieces of a long recording are pieces here too.

    Whisper's windows share a forward, and so do recordings of a CTC model that minds no padding; of other models
    those of equal length do.
    """

    unit = "samples"

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._writes: bool = pipeline.type in ("seq2seq", "seq2seq_whisper")
        self._is_whisper: bool = pipeline.type == "seq2seq_whisper"
        self._places = writing_positions(pipeline.model)
        self._takes_padding: bool = pipeline.type == "ctc" and takes_padding(pipeline.model)

    def read(self, value: Media, media: MediaReader, param: str) -> Samples:
        return media.audio(value, param, sampling_rate=self.pipeline.feature_extractor.sampling_rate)

    def options(self, parameters: AutomaticSpeechRecognitionParameters) -> dict[str, Any]:
        options = super().options(parameters)
        if not options.get("return_timestamps"):
            # The library takes `false` for a wrong kind of timestamps of a CTC model, and refuses it for recordings
            # that Whisper hears window by window.
            options.pop("return_timestamps", None)
        # The library warns once a call that Whisper knows a better way than pieces of our length.
        return {**options, "ignore_warning": True}

    def stopping(self, options: dict[str, Any], criteria: StoppingCriteriaList) -> dict[str, Any]:
        return super().stopping(options, criteria) if self._writes else options

    def result(
        self,
        outputs: Sequence[Any],
        pieces: Sequence[PipelinePiece],
        parameters: AutomaticSpeechRecognitionParameters,
    ) -> Any:
        if self._takes_padding:
            for output, piece in zip(outputs, pieces, strict=True):
                # What was heard in the padding is no part of the recording.
                samples = piece.model_inputs["attention_mask"].shape[-1]
                output["tokens"] = output["tokens"][:, : frames_heard(self.pipeline.model, samples)]
        return super().result(outputs, pieces, parameters)

    def _pieces(
        self, value: Samples, parameters: AutomaticSpeechRecognitionParameters, name: str
    ) -> list[PipelinePiece]:
        asked = parameters.generation_parameters.model_dump(exclude_none=True)
        if not self._writes:
            self._refuse(asked, "the model reads its text off the sound (CTC) and generates nothing")
        elif not self._is_whisper:
            self._refuse({"language", "task"} & set(asked), "these are Whisper's")
        require_frames(self.pipeline.model, len(value), name)
        pieces = super()._pieces(value, parameters, name)
        if self._writes:
            require_places(self, pieces[0], self._places, name)
        return pieces

    def _company(self, inputs: dict[str, Any], forward: dict[str, Any]) -> Hashable:
        # A long recording moves from window to window at its own pace; and the library looks for the language of a
        # batch in its first row.
        if self._is_long(inputs) or forward.get("return_language"):
            return object()
        return super()._company(inputs, forward)

    def _shape(self, value: Any, inputs: dict[str, Any]) -> str:
        shape = sound_shape(value, inputs) if self._takes_padding else None
        return shape or super()._shape(value, {})

    def _is_long(self, inputs: dict[str, Any]) -> bool:
        if not self._is_whisper:
            return False
        frames: int = inputs["input_features"].shape[-1]
        return bool(frames > self.pipeline.feature_extractor.nb_max_frames)

    @staticmethod
    def _refuse(names: Any, reason: str) -> None:
        if names:
            fields = ", ".join(f"`parameters.generation_parameters.{name}`" for name in sorted(names))
            raise InvalidRequest(f"{reason}; leave out {fields}", param="parameters.generation_parameters")
