"""Between huggingface_hub's wire shapes and jobs: what a request asks for, and what its answer looks like."""

import base64
from dataclasses import dataclass
from typing import Any

from api.hf_text_generation import generation_asked, generation_shown
from tandem.artifacts import ArtifactStore
from tandem.errors import InvalidRequest
from tandem.specs import Task
from tandem.specs.generate_parameters import GenerateParameters
from tandem.specs.media import ARTIFACT

IGNORED = frozenset({"options", "stream", "encoding_format"})
"""Keys that are no parameters of a job: a hosted service's, and what is looked at by itself."""
BYTES_TASKS = frozenset({"text-to-audio", "image-to-image"})
"""Their answer is the file itself."""
LISTED_TASKS = frozenset({"text-generation", "text2text-generation", "summarization", "translation", "image-to-text"})
"""The answer to one input is a list of one."""


@dataclass(frozen=True, slots=True)
class Answer:
    content: Any
    """JSON, or the bytes of a file."""
    media_type: str = "application/json"


def asked(task: Task, sent: dict[str, Any]) -> dict[str, Any]:
    """The job's fields: parameters may stand at the root as well (feature-extraction), and so may a question.

    Raises InvalidRequest for what has another meaning there than it has for a job.
    """
    _refuse_forms(task, sent)
    inputs = sent.get("inputs")
    parameters = sent.get("parameters") or {}
    if not isinstance(parameters, dict):
        return {"task": task, "inputs": inputs, "parameters": parameters}  # refused by its field
    rest = {name: value for name, value in sent.items() if name not in {"inputs", "parameters", *IGNORED}}
    if "question" in rest and "image" in rest:
        # visual_question_answering() sends the image twice.
        inputs = {"question": rest.pop("question"), "image": rest.pop("image")}
    fields: dict[str, Any] = {"task": task}
    if inputs is not None:  # "is missing", not "is null"
        fields["inputs"] = inputs
    if task == "text-generation":
        return {**fields, **generation_asked({**rest, **parameters}, stream=sent.get("stream") is True)}
    said = {name: value for name, value in {**rest, **parameters}.items() if value is not None}
    if task == "table-question-answering":
        said.pop("model", None)  # the client says it there once more
    if task == "text-to-audio":
        said = _speech(said)
    return {**fields, "parameters": said} if said else fields


def _refuse_forms(task: Task, sent: dict[str, Any]) -> None:
    if sent.get("stream") and task != "text-generation":
        raise InvalidRequest(f"`stream`: only text-generation is streamed, not {task}; leave it out", param="stream")
    if sent.get("encoding_format") not in (None, "float"):
        raise InvalidRequest(
            "`encoding_format`: vectors are lists of numbers here (`float`); POST /v1/embeddings gives base64",
            param="encoding_format",
        )


def _speech(parameters: dict[str, Any]) -> dict[str, Any]:
    """text_to_speech() has no level of its own for how tokens are chosen."""
    chosen = {name: value for name, value in parameters.items() if name in GenerateParameters.model_fields}
    rest = {name: value for name, value in parameters.items() if name not in chosen}
    return {**rest, "generation_parameters": {**rest.get("generation_parameters", {}), **chosen}} if chosen else rest


def shown(task: Task, sent: dict[str, Any], result: dict[str, Any], artifacts: ArtifactStore) -> Answer:
    """The answer to `sent`, from its job's result. Files are base64 in it, or the answer itself."""
    if task == "text-generation":
        return Answer(generation_shown(sent, result))
    rows = result["rows"]
    several = isinstance(sent.get("inputs"), list)
    if task in BYTES_TASKS and not several:
        return _file(rows[0], artifacts)
    answers = [_with_files(_row(task, row), artifacts) for row in rows]
    if task == "text-classification":
        # A list of one list for one text: older clients took it for a batch of one.
        return Answer(answers)
    if several:
        return Answer(answers)
    if task in LISTED_TASKS and not isinstance(answers[0], list):
        return Answer(answers)
    return Answer(answers[0])


def _row(task: Task, row: Any) -> Any:
    if task == "zero-shot-classification" and isinstance(row, dict) and "labels" in row:
        return [{"label": label, "score": score} for label, score in zip(row["labels"], row["scores"], strict=True)]
    return row


def _file(row: Any, artifacts: ArtifactStore) -> Answer:
    """The file that a row is, or that one of its fields is."""
    found = row if _is_file(row) else next(value for value in row.values() if _is_file(value))
    return Answer(_content(found, artifacts), found["media_type"])


def _with_files(value: Any, artifacts: ArtifactStore) -> Any:
    if _is_file(value):
        return base64.b64encode(_content(value, artifacts)).decode()
    if isinstance(value, dict):
        return {name: _with_files(item, artifacts) for name, item in value.items()}
    return [_with_files(item, artifacts) for item in value] if isinstance(value, list) else value


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and "artifact" in value and "media_type" in value


def _content(file: dict[str, Any], artifacts: ArtifactStore) -> bytes:
    named = ARTIFACT.fullmatch(file["artifact"])
    assert named is not None, "a result names its files as ResultFiles does"
    return artifacts.read(named[1])
