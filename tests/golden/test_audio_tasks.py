"""A job's rows on audio are what the library's own call returns, alone and batched with strangers."""

import io
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tandem.errors import InvalidRequest
from tandem.specs import job_spec_adapter
from tests.golden.media_jobs import Asked, same, sent
from tests.golden.media_jobs import MediaJobs as MediaJobs
from tests.golden.multimodal_inputs import as_sent, heard
from tests.tiny_models import samples
from tests.tiny_models.calls import NOISES
from worker.tasks.json_values import json_value

RECORDINGS = [*samples.sounds(), samples.sound(3.1, pitch=330, seed=5)]
"""The last is longer than the window of the tiny Whisper, 2 s."""
SPEECH = "automatic-speech-recognition"


@dataclass(frozen=True)
class Case:
    """One task on one model, with one set of parameters."""

    task: str
    model: str
    parameters: dict[str, Any] = field(default_factory=dict)
    recordings: int = len(RECORDINGS)
    forwards: int = 1
    """For all recordings twice, in a job each and in one job together, submitted at once."""

    def __str__(self) -> str:
        return "-".join([self.task, self.model, *self.parameters])


# Beyond its window Whisper goes on by itself, alone: the long recording, twice, is two forwards more.
CASES = (
    Case("audio-classification", "tiny-wav2vec2"),
    Case("audio-classification", "tiny-ast", {"top_k": 2, "function_to_apply": "sigmoid"}),
    # CLAP cuts a random piece out of a recording longer than its window.
    Case("zero-shot-audio-classification", "tiny-clap", {"candidate_labels": NOISES}, recordings=3),
    Case(
        "zero-shot-audio-classification",
        "tiny-clap",
        {"candidate_labels": NOISES[:1], "hypothesis_template": "the sound of {}"},
        recordings=3,
    ),
    Case(SPEECH, "tiny-wav2vec2-ctc"),
    Case(SPEECH, "tiny-wav2vec2-ctc", {"return_timestamps": "char"}),
    Case(
        SPEECH,
        "tiny-wav2vec2-ctc",
        {"return_timestamps": "word", "chunk_length_s": 0.5, "stride_length_s": (0.1, 0.05)},
    ),
    Case(SPEECH, "tiny-whisper", forwards=3),
    Case(SPEECH, "tiny-whisper", {"return_timestamps": True}, forwards=3),
    Case(SPEECH, "tiny-whisper", {"return_timestamps": "word"}, forwards=3),
    Case(SPEECH, "tiny-whisper", {"generation_parameters": {"num_beams": 2, "max_new_tokens": 5}}, forwards=3),
    Case(SPEECH, "tiny-whisper", {"chunk_length_s": 1.0, "return_timestamps": True}),
)

Loaded = Callable[[str, str], MediaJobs]


@pytest.fixture(scope="module")
def loaded(tiny_folder: Callable[[str], Path]) -> Loaded:
    """Each task on each model, once."""
    return cache(lambda task, model: MediaJobs(task, tiny_folder(model)))


def file(recording: Any) -> str:
    return str(as_sent(heard(recording)))


def by_the_library(jobs: MediaJobs, recording: Any, parameters: dict[str, Any]) -> Any:
    """Its answer, as JSON has it."""
    given = {
        ("generate_kwargs" if name == "generation_parameters" else name): parameters[name] for name in parameters
    }
    return json_value(jobs.pipeline(heard(recording), **given))


# NumPy warns of how the library hands a tensor to it where it reckons the times of words.
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context and return_scalar:DeprecationWarning")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_are_the_librarys_alone_and_among_strangers(case: Case, loaded: Loaded) -> None:
    jobs = loaded(case.task, case.model)
    recordings = RECORDINGS[: case.recordings]
    expected = [by_the_library(jobs, recording, case.parameters) for recording in recordings]
    assert all(expected), "the tiny model says something"
    for recording, row in zip(recordings, expected, strict=True):
        [[alone]] = jobs.run(Asked(file(recording), case.parameters))
        same(alone, row)
    files = [file(recording) for recording in recordings]
    *singles, together = jobs.run(*(Asked(one, case.parameters) for one in files), Asked(files, case.parameters))
    assert jobs.forwards == case.forwards
    same(together, expected)
    same([row for [row] in singles], expected)


def test_other_labels_are_another_forward(loaded: Loaded) -> None:
    jobs = loaded("zero-shot-audio-classification", "tiny-clap")
    recording = RECORDINGS[0]
    parameters = [{"candidate_labels": NOISES}, {"candidate_labels": NOISES[::-1]}, {"candidate_labels": NOISES[:2]}]
    answers = jobs.run(*(Asked(file(recording), given) for given in parameters))
    assert jobs.forwards == 3
    same(answers, [[by_the_library(jobs, recording, given)] for given in parameters])


def test_a_long_recording_is_heard_in_pieces_that_share_a_forward(loaded: Loaded) -> None:
    jobs = loaded(SPEECH, "tiny-whisper")
    pieces = jobs.task.encode(
        [heard(RECORDINGS[-1])],
        _parameters(jobs, {"chunk_length_s": 1.0, "stride_length_s": 0.25}),
    )
    assert [len(made) for made in pieces] == [6]
    [[row]] = jobs.run(Asked(file(RECORDINGS[-1]), {"chunk_length_s": 1.0, "stride_length_s": 0.25}))
    assert jobs.forwards == 1
    assert row["text"]


def test_no_timestamps_asked_for_is_no_fault_of_a_model_that_has_none_of_that_kind(loaded: Loaded) -> None:
    """The hub's client may send `return_timestamps: false`, which the library refuses here."""
    jobs = loaded(SPEECH, "tiny-wav2vec2-ctc")
    [[row]] = jobs.run(Asked(file(RECORDINGS[0]), {"return_timestamps": False}))
    same(row, by_the_library(jobs, RECORDINGS[0], {}))


@pytest.mark.parametrize(
    ("model", "parameters", "message", "param"),
    [
        ("tiny-wav2vec2-ctc", {"return_timestamps": True}, "CTC can either predict character level", "parameters"),
        ("tiny-wav2vec2-ctc", {"return_language": True}, "Only Whisper can return language", "parameters"),
        (
            "tiny-wav2vec2-ctc",
            {"generation_parameters": {"num_beams": 2}},
            r"generates nothing; leave out `parameters\.generation_parameters\.num_beams`",
            "parameters.generation_parameters",
        ),
        ("tiny-whisper", {"return_timestamps": "char"}, "Whisper cannot return `char` timestamps", "parameters"),
        (
            "tiny-whisper",
            {"generation_parameters": {"language": "fr"}},
            "cannot generate with these parameters: Cannot specify `task` or `language` for an English-only model",
            "parameters",
        ),
        (
            "tiny-whisper",
            {"generation_parameters": {"max_new_tokens": 33}},
            "33 may be written; the model holds 32 together",
            "inputs[0]",
        ),
    ],
    ids=str,
)
def test_what_a_model_cannot_do_is_refused(
    model: str, parameters: dict[str, Any], message: str, param: str, loaded: Loaded
) -> None:
    [error] = loaded(SPEECH, model).run(Asked(file(RECORDINGS[0]), parameters))
    assert isinstance(error, InvalidRequest)
    assert error.param == param
    with pytest.raises(InvalidRequest, match=message):
        raise error


@pytest.mark.parametrize("task", ["audio-classification", SPEECH])
def test_a_sound_that_cannot_be_heard_fails_alone(task: str, loaded: Loaded) -> None:
    jobs = loaded(task, "tiny-wav2vec2" if task == "audio-classification" else "tiny-wav2vec2-ctc")
    good, short, broken = file(RECORDINGS[0]), file(RECORDINGS[0][:300]), sent(b"no sound")
    kept, lost, stranger = jobs.run(
        Asked([broken, good, short], on_row_error="keep"), Asked([good, short]), Asked(good)
    )
    row = by_the_library(jobs, RECORDINGS[0], {})
    same(kept[1], row)
    same(stranger, [row])
    assert [type(kept[0]), type(kept[2]), type(lost)] == [InvalidRequest] * 3
    assert kept[0].param == "inputs[0]"
    assert kept[2].message == "`inputs[2]` is too short: the model hears nothing in 300 samples"
    assert lost.param == "inputs[1]"


class TestTextToAudio:
    texts = (samples.SENTENCES[0], samples.SENTENCES[5])

    def test_gives_the_librarys_sound_as_a_file(self, tiny_folder: Callable[[str], Path]) -> None:
        jobs = MediaJobs("text-to-audio", tiny_folder("tiny-vits"))
        jobs.name = "text-to-speech"
        expected = [jobs.pipeline(text) for text in self.texts]
        [rows] = jobs.run(Asked(list(self.texts)))
        assert jobs.forwards == len(self.texts), "the convolutions of VITS hear the padding"
        for row, answer in zip(rows, expected, strict=True):
            assert row["audio"]["media_type"] == "audio/wav"
            assert row["sampling_rate"] == answer["sampling_rate"]
            with wave.open(io.BytesIO(jobs.opened(row["audio"]))) as stored:
                assert stored.getframerate() == answer["sampling_rate"]
                values = np.frombuffer(stored.readframes(stored.getnframes()), dtype="<i2") / 32768
            # Half a step of 16 bits.
            assert np.abs(values - answer["audio"]).max() <= 0.5001 / 32768

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"generation_parameters": {"max_new_tokens": 5}}, "makes its sound in one step"),
            ({"speaker_id": 1}, r"has 1 speaker\(s\), counted from 0; `parameters.speaker_id` is 1"),
            ({"speaker_embeddings": [0.5]}, "takes no vector of a voice"),
        ],
        ids=str,
    )
    def test_a_parameter_without_meaning_for_the_model_is_refused(
        self, parameters: dict[str, Any], message: str, loaded: Loaded
    ) -> None:
        [error] = loaded("text-to-audio", "tiny-vits").run(Asked("yes", parameters))
        with pytest.raises(InvalidRequest, match=message):
            raise error
        assert error.param == f"parameters.{next(iter(parameters))}"


def _parameters(jobs: MediaJobs, parameters: dict[str, Any]) -> Any:
    spec: Any = job_spec_adapter.validate_python(
        {"kind": "inference", "task": jobs.name, "inputs": "aGk=", "parameters": parameters}
    )
    return spec.parameters
