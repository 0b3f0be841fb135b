"""Tasks on audio."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tandem.specs.base import InferenceBase, Spec, TextInputs
from tandem.specs.candidate_labels import CandidateLabels, HypothesisTemplate
from tandem.specs.generate_parameters import GenerateParameters
from tandem.specs.media import MediaInputs

MAX_CHUNK_SECONDS = 3600.0
"""Of one piece of a recording: as long as the longest recording that a worker takes by default."""
MIN_CHUNK_SECONDS = 0.1
"""Shorter pieces hold no word, and an hour of them would be tens of thousands of rows."""
MAX_OVERLAP = 0.75
"""The part of a piece that its neighbours may hear too; so no sample is heard more than four times."""
MAX_SPEAKER_VALUES = 8192
"""Numbers in the vector of a voice: SpeechT5's has 512."""

Language = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z -]{0,31}$")]
"""A language as Whisper names it, such as `en`, `yue` or `haitian creole`."""
Seconds = Annotated[float, Field(ge=0.0, le=MAX_CHUNK_SECONDS)]


class AudioClassificationParameters(Spec):
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None
    """How scores are made of the model's outputs; None does as the model's configuration says."""
    top_k: int | None = Field(default=None, ge=1, le=10_000)
    """How many labels to return, best first; all by default."""


class AudioClassificationSpec(InferenceBase):
    """Sounds in, labels with scores out."""

    task: Literal["audio-classification"]
    inputs: MediaInputs
    parameters: AudioClassificationParameters = AudioClassificationParameters()


class ZeroShotAudioClassificationParameters(Spec):
    candidate_labels: CandidateLabels
    hypothesis_template: HypothesisTemplate | None = None
    """`This is a sound of {}.` by default."""


class ZeroShotAudioClassificationSpec(InferenceBase):
    """Sounds in, scores of the caller's own labels out."""

    task: Literal["zero-shot-audio-classification"]
    inputs: MediaInputs
    parameters: ZeroShotAudioClassificationParameters


class SpeechGenerateParameters(GenerateParameters):
    """What Whisper's `generate()` takes besides."""

    language: Language | None = None
    """What is spoken; None lets the model find out."""
    task: Literal["transcribe", "translate"] | None = None
    """Write down what is said, or its English translation."""


class AutomaticSpeechRecognitionParameters(Spec):
    chunk_length_s: float | None = Field(default=None, ge=MIN_CHUNK_SECONDS, le=MAX_CHUNK_SECONDS)
    """Cut the sound into pieces of so many seconds, which overlap; None hears it whole, or in Whisper's windows."""
    generation_parameters: SpeechGenerateParameters = SpeechGenerateParameters()
    """Of models that write their text token by token, such as Whisper; CTC models take none."""
    return_language: bool | None = None
    """Name the language of each chunk (Whisper)."""
    return_timestamps: bool | Literal["char", "word"] | None = None
    """Return `chunks` with their beginning and end in seconds: of segments (`true`, Whisper), words, or characters
    (CTC)."""
    stride_length_s: Seconds | tuple[Seconds, Seconds] | None = None
    """How much of a piece overlaps with the one before it and the one after it: a sixth each by default."""

    @model_validator(mode="after")
    def _pieces_get_on(self) -> Self:
        if self.stride_length_s is None:
            return self
        if self.chunk_length_s is None:
            raise ValueError("`stride_length_s` is the overlap of pieces: give their `chunk_length_s` too")
        stride = self.stride_length_s
        overlap = sum(stride) if isinstance(stride, tuple) else 2 * stride
        if overlap > MAX_OVERLAP * self.chunk_length_s:
            raise ValueError(
                f"`stride_length_s` makes {overlap:g} s of a piece overlap, which may be {MAX_OVERLAP:.0%} of its "
                f"{self.chunk_length_s:g} s: lower it, or raise `chunk_length_s`"
            )
        return self


class AutomaticSpeechRecognitionSpec(InferenceBase):
    """Speech in, its text out, with `chunks` and their times where asked for."""

    task: Literal["automatic-speech-recognition"]
    inputs: MediaInputs
    parameters: AutomaticSpeechRecognitionParameters = AutomaticSpeechRecognitionParameters()


class TextToAudioParameters(Spec):
    generation_parameters: GenerateParameters = GenerateParameters()
    """Of models that write sound token by token, such as MusicGen and Bark; VITS takes none."""
    speaker_embeddings: Annotated[tuple[float, ...], Field(min_length=1, max_length=MAX_SPEAKER_VALUES)] | None = None
    """The vector of the voice (SpeechT5)."""
    speaker_id: int | None = Field(default=None, ge=0)
    """The voice, of a VITS model that has several."""


class TextToAudioSpec(InferenceBase):
    """Texts in, speech or music out: WAV files."""

    task: Literal["text-to-audio"]
    inputs: TextInputs
    parameters: TextToAudioParameters = TextToAudioParameters()


AudioSpec = (
    AudioClassificationSpec | ZeroShotAudioClassificationSpec | AutomaticSpeechRecognitionSpec | TextToAudioSpec
)
