"""What may be asked of the tasks on audio: huggingface_hub's own inputs, and what is refused by name."""

from dataclasses import asdict
from typing import Any

import pytest
from huggingface_hub import (
    AudioClassificationInput,
    AudioClassificationParameters,
    AutomaticSpeechRecognitionGenerationParameters,
    AutomaticSpeechRecognitionInput,
    AutomaticSpeechRecognitionParameters,
    TextToAudioGenerationParameters,
    TextToAudioInput,
    TextToAudioParameters,
    TextToSpeechGenerationParameters,
    TextToSpeechInput,
    TextToSpeechParameters,
)
from pydantic import ValidationError

from tandem.specs import job_spec_adapter
from tandem.specs.audio import MAX_CHUNK_SECONDS

SOUND = "aGVsbG8="
"""Any bytes: a spec does not decode them."""
GENERATE: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 2, "early_stopping": "never", "typical_p": 0.5}


def spec(task: str, inputs: Any = SOUND, parameters: dict[str, Any] | None = None) -> Any:
    return job_spec_adapter.validate_python(
        {"kind": "inference", "task": task, "inputs": inputs, "parameters": parameters or {}}
    )


def refusal(task: str, inputs: Any = SOUND, parameters: dict[str, Any] | None = None) -> tuple[str, str]:
    """Where the first fault is, as far as the user's own names go, and what is said of it."""
    with pytest.raises(ValidationError) as error:
        spec(task, inputs, parameters)
    first = error.value.errors()[0]
    return ".".join(str(part) for part in first["loc"][2:]), first["msg"]


def given(value: Any) -> Any:
    """As the hub's client sends it: without what is None."""
    if isinstance(value, dict):
        return {name: given(item) for name, item in value.items() if item is not None}
    return value


@pytest.mark.parametrize(
    ("task", "request_"),
    [
        (
            "audio-classification",
            AudioClassificationInput(SOUND, AudioClassificationParameters(function_to_apply="sigmoid", top_k=3)),
        ),
        (
            "automatic-speech-recognition",
            AutomaticSpeechRecognitionInput(
                SOUND,
                AutomaticSpeechRecognitionParameters(
                    AutomaticSpeechRecognitionGenerationParameters(**GENERATE), return_timestamps=True
                ),
            ),
        ),
        (
            "text-to-audio",
            TextToAudioInput("yes", TextToAudioParameters(TextToAudioGenerationParameters(**GENERATE))),
        ),
        (
            "text-to-speech",
            TextToSpeechInput("yes", TextToSpeechParameters(TextToSpeechGenerationParameters(**GENERATE))),
        ),
    ],
)
def test_huggingface_hubs_inputs_are_taken_as_they_are(task: str, request_: Any) -> None:
    asked = given(asdict(request_))
    read = spec(task, asked["inputs"], asked["parameters"])
    assert read.inputs == asked["inputs"]
    assert given(read.parameters.model_dump()) == asked["parameters"]


def test_text_to_speech_is_text_to_audio() -> None:
    assert spec("text-to-speech", "yes").task == "text-to-audio"


def test_many_sounds_are_one_job() -> None:
    read = spec("automatic-speech-recognition", [SOUND, f"file-{'0' * 24}"])
    assert isinstance(read.inputs, tuple)
    assert read.inputs[1].file_id == f"file-{'0' * 24}"


def test_a_stored_spec_is_read_back_as_it_was() -> None:
    parameters = {"chunk_length_s": 30, "stride_length_s": [4, 2], "return_timestamps": "word"}
    read = spec("automatic-speech-recognition", [SOUND], parameters)
    assert job_spec_adapter.validate_json(read.model_dump_json()) == read


@pytest.mark.parametrize(
    ("task", "parameters", "place", "message"),
    [
        ("audio-classification", {"topk": 3}, "parameters.topk", "Extra inputs are not permitted"),
        ("audio-classification", {"top_k": 0}, "parameters.top_k", "greater than or equal to 1"),
        ("audio-classification", {"function_to_apply": "relu"}, "parameters.function_to_apply", "'sigmoid'"),
        ("zero-shot-audio-classification", {}, "parameters.candidate_labels", "Field required"),
        (
            "zero-shot-audio-classification",
            {"candidate_labels": ["a"], "hypothesis_template": "{0}"},
            "parameters.hypothesis_template",
            "must have `{}` once",
        ),
        (
            "automatic-speech-recognition",
            {"chunk_length_s": MAX_CHUNK_SECONDS + 1},
            "parameters.chunk_length_s",
            "less than or equal to 3600",
        ),
        ("automatic-speech-recognition", {"chunk_length_s": 0}, "parameters.chunk_length_s", "equal to 0.1"),
        (
            "automatic-speech-recognition",
            {"stride_length_s": 2},
            "parameters",
            "`stride_length_s` is the overlap of pieces: give their `chunk_length_s` too",
        ),
        (
            "automatic-speech-recognition",
            {"chunk_length_s": 10, "stride_length_s": [4, 4]},
            "parameters",
            "makes 8 s of a piece overlap, which may be 75% of its 10 s",
        ),
        (
            "automatic-speech-recognition",
            {"chunk_length_s": 10, "stride_length_s": 4},
            "parameters",
            "makes 8 s of a piece overlap",
        ),
        (
            "automatic-speech-recognition",
            {"return_timestamps": "letter"},
            "parameters.return_timestamps",
            "",
        ),
        (
            "automatic-speech-recognition",
            {"generation_parameters": {"language": "<|en|>"}},
            "parameters.generation_parameters.language",
            "should match pattern",
        ),
        (
            "text-to-audio",
            {"generation_parameters": {"max_tokens": 3}},
            "parameters.generation_parameters.max_tokens",
            "Extra inputs are not permitted",
        ),
        ("text-to-audio", {"speaker_embeddings": []}, "parameters.speaker_embeddings", "at least 1 item"),
        ("text-to-audio", {"speaker_id": -1}, "parameters.speaker_id", "greater than or equal to 0"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_refused_by_name(
    task: str, parameters: dict[str, Any], place: str, message: str
) -> None:
    found, said = refusal(task, "yes" if task == "text-to-audio" else SOUND, parameters)
    assert found.startswith(place)
    assert message in said


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("https://example.org/a.wav", "URLs are not fetched"),
        ("not base64!", "is neither base64"),
        ([], "at least 1 item"),
    ],
)
def test_what_is_no_sound_is_refused(inputs: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec("automatic-speech-recognition", inputs)
