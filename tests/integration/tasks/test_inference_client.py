"""Every task that huggingface_hub's InferenceClient has a method for: the client unchanged but for its address."""

import asyncio
import base64
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient, constants
from huggingface_hub.errors import BadRequestError

from tandem.embedded_service import EmbeddedService
from tests.integration.tasks.jobs import FILM, JOBS, LABELS, PAGE, PICTURE, SOUND
from tests.tiny_models import samples


@pytest.fixture
def hub(tasks_service: EmbeddedService, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], InferenceClient]:
    # The tests run with HF_HUB_OFFLINE, so that none asks a hub; to the client our own service is one.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def client(model: str) -> InferenceClient:
        return InferenceClient(base_url=f"{tasks_service.api_url}/hf/models/{model}", api_key=tasks_service.api_key)

    return client


CHAT_MODEL = "smollm2-float32"
HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]
FORM = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
PNG = samples.png(PICTURE)
PAGE_PNG = samples.png(PAGE["image"])

Ask = Callable[[InferenceClient], Any]
HUB_CALLS: dict[str, tuple[str, Ask, Callable[[Any], bool]]] = {
    "text-generation": (
        "tiny-llama",
        lambda hub: hub.text_generation("the sea", max_new_tokens=4),
        lambda out: isinstance(out, str),
    ),
    "feature-extraction": (
        "all-minilm-l6-v2",
        lambda hub: hub.feature_extraction("a cat"),
        lambda out: out.shape[-1] == 384,
    ),
    "sentence-similarity": (
        "all-minilm-l6-v2",
        lambda hub: hub.sentence_similarity("a cat", ["a dog", "tax law"]),
        lambda out: out[0] > out[1],
    ),
    "fill-mask": (
        "tiny-bert-masked",
        lambda hub: hub.fill_mask("the [MASK] sat", top_k=3),
        lambda out: len(out) == 3,
    ),
    "text-classification": (
        "tiny-bert-sentiment",
        lambda hub: hub.text_classification("calm"),
        lambda out: len(out) == 3,
    ),
    "token-classification": (
        "tiny-bert-entities",
        lambda hub: hub.token_classification("Anna Smith works in London", aggregation_strategy="simple"),
        lambda out: isinstance(out, list),
    ),
    "zero-shot-classification": (
        "tiny-bert-nli",
        lambda hub: hub.zero_shot_classification("who won", ["sport", "money"]),
        lambda out: {element.label for element in out} == {"sport", "money"},
    ),
    "question-answering": (
        "tiny-bert-answers",
        lambda hub: hub.question_answering(question="who slept?", context="the old man slept"),
        lambda out: out.answer in "the old man slept",
    ),
    "table-question-answering": (
        "tiny-tapas",
        lambda hub: hub.table_question_answering(table=samples.TABLE, query=samples.TABLE_QUERIES[0]),
        lambda out: isinstance(out.answer, str),
    ),
    "summarization": (
        "tiny-bart/pipeline/summarization",
        lambda hub: hub.summarization("the sea was calm"),
        lambda out: isinstance(out.summary_text, str),
    ),
    "translation": (
        "tiny-marian",
        lambda hub: hub.translation("the house is small"),
        lambda out: isinstance(out.translation_text, str),
    ),
    "image-classification": ("tiny-vit", lambda hub: hub.image_classification(PNG), lambda out: out[0].score > 0),
    "image-segmentation": (
        "tiny-segformer",
        lambda hub: hub.image_segmentation(PNG),
        lambda out: out[0].mask.size == PICTURE.size,
    ),
    "image-to-text": (
        "tiny-donut-captions",
        lambda hub: hub.image_to_text(PNG),
        lambda out: isinstance(out.generated_text, str),
    ),
    "image-to-image": (
        "tiny-swin2sr",
        lambda hub: hub.image_to_image(PNG),
        lambda out: out.size[0] >= 2 * PICTURE.size[0],
    ),
    "object-detection": (
        "tiny-yolos",
        lambda hub: hub.object_detection(PNG, threshold=0.0),
        lambda out: out[0].box.xmax >= out[0].box.xmin,
    ),
    "zero-shot-image-classification": (
        "tiny-clip",
        lambda hub: hub.zero_shot_image_classification(PNG, ["red", "green"]),
        lambda out: len(out) == 2,
    ),
    "audio-classification": (
        "tiny-wav2vec2",
        lambda hub: hub.audio_classification(SOUND, top_k=2),
        lambda out: len(out) == 2,
    ),
    "automatic-speech-recognition": (
        "tiny-wav2vec2-ctc",
        lambda hub: hub.automatic_speech_recognition(SOUND),
        lambda out: isinstance(out.text, str),
    ),
    "text-to-audio": ("tiny-vits", lambda hub: hub.text_to_speech("the sea"), lambda out: out[:4] == b"RIFF"),
    "document-question-answering": (
        "tiny-layoutlm",
        lambda hub: hub.document_question_answering(
            PAGE_PNG, question=PAGE["question"], word_boxes=PAGE["word_boxes"]
        ),
        lambda out: isinstance(out[0].answer, str),
    ),
    "visual-question-answering": (
        "tiny-vilt",
        lambda hub: hub.visual_question_answering(PNG, question="what is it?", top_k=2),
        lambda out: len(out) == 2,
    ),
}


@pytest.mark.parametrize("task", HUB_CALLS)
def test_huggingface_hubs_client_gets_its_answer(hub: Callable[[str], InferenceClient], task: str) -> None:
    model, ask, holds = HUB_CALLS[task]
    assert holds(ask(hub(model)))


METHODS = {"text-to-audio": "text_to_speech"} | {
    task: task.replace("-", "_") for task in HUB_CALLS if task != "text-to-audio"
}
TESTED_BELOW = {"chat_completion", "health_check", "get_endpoint_info", "close"}
NOT_RUN = {
    "audio_to_audio",
    "image_to_video",
    "tabular_classification",
    "tabular_regression",
    "text_to_image",
    "text_to_video",
}
"""No task of transformers' pipelines: see docs/hugging-face.md."""


def test_every_method_of_the_client_is_here() -> None:
    methods = {name for name, _ in inspect.getmembers(InferenceClient, inspect.isfunction) if name[0] != "_"}
    assert methods == set(METHODS.values()) | TESTED_BELOW | NOT_RUN
    page = (Path(__file__).parents[3] / "docs" / "hugging-face.md").read_text(encoding="utf-8")
    assert {name for name in methods - {"close"} if f"`{name}`" not in page} == set(), "its table has a line for each"


def test_the_asynchronous_client_is_answered_as_well(
    hub: Callable[[str], InferenceClient], tasks_service: EmbeddedService
) -> None:
    url = f"{tasks_service.api_url}/hf/models"

    def client(model: str) -> AsyncInferenceClient:
        return AsyncInferenceClient(base_url=f"{url}/{model}", api_key=tasks_service.api_key)

    async def ask() -> tuple[Any, Any, list[Any], list[Any]]:
        async with client("tiny-bert-sentiment") as labels, client("tiny-llama") as text, client(CHAT_MODEL) as chat:
            pieces = await text.text_generation("the sea", max_new_tokens=4, stream=True)
            chunks = await chat.chat_completion(HELLO, max_tokens=4, temperature=0, stream=True)
            return (
                await labels.text_classification("calm"),
                await chat.chat_completion(HELLO, max_tokens=4, temperature=0),
                [piece async for piece in pieces],
                [chunk async for chunk in chunks],
            )

    labels, answer, pieces, chunks = asyncio.run(ask())
    assert len(labels) == 3
    assert "".join(pieces) == hub("tiny-llama").text_generation("the sea", max_new_tokens=4)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content


# Text


def test_details_tell_every_token(hub: Callable[[str], InferenceClient]) -> None:
    out = hub(CHAT_MODEL).text_generation("The sea is", max_new_tokens=5, details=True, top_n_tokens=2, seed=3)
    assert out.details is not None
    assert (out.details.finish_reason, out.details.generated_tokens, out.details.seed) == ("length", 5, 3)
    assert "".join(token.text for token in out.details.tokens) == out.generated_text
    assert out.details.top_tokens is not None
    assert [len(top) for top in out.details.top_tokens] == [2] * 5


def test_a_stream_of_details_ends_with_the_whole_text(hub: Callable[[str], InferenceClient]) -> None:
    client = hub(CHAT_MODEL)
    *events, last = client.text_generation("The sea is", max_new_tokens=5, details=True, stream=True)
    assert "".join(event.token.text for event in [*events, last]) == last.generated_text
    assert last.generated_text == client.text_generation("The sea is", max_new_tokens=5)
    assert [event.index for event in [*events, last]] == [1, 2, 3, 4, 5]
    assert all(event.token.logprob < 0 for event in events)
    assert last.details is not None
    assert (last.details.finish_reason, last.details.generated_tokens) == ("length", 5)
    assert "".join(client.text_generation("The sea is", max_new_tokens=5, stream=True)) == last.generated_text


def test_a_grammar_is_followed(hub: Callable[[str], InferenceClient]) -> None:
    grammar: Any = {"type": "json", "value": FORM}
    assert json.loads(hub(CHAT_MODEL).text_generation("JSON:", max_new_tokens=60, grammar=grammar))["a"] in (1, 2)
    grammar = {"type": "regex", "value": "(yes|no)"}
    assert hub(CHAT_MODEL).text_generation("Is it?", max_new_tokens=9, grammar=grammar) in ("yes", "no")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"typical_p": 0.5}, "parameters.typical_p"),
        ({"truncate": 5}, "parameters.truncate"),
        ({"watermark": True}, "parameters.watermark"),
        ({"details": True, "decoder_input_details": True}, "parameters.decoder_input_details"),
        ({"best_of": 2}, "parameters.best_of"),
        ({"grammar": {"type": "lark", "value": "x"}}, "parameters.grammar"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    hub: Callable[[str], InferenceClient], parameters: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        hub("tiny-llama").text_generation("the sea", **parameters)
    assert refused.value.response.json()["error"]["param"] == said


# Chats


def test_a_chat_is_answered_whole_and_in_pieces(hub: Callable[[str], InferenceClient]) -> None:
    client = hub(CHAT_MODEL)
    whole = client.chat_completion(HELLO, max_tokens=6, temperature=0, logprobs=True, top_logprobs=1)
    (choice,) = whole.choices
    assert (choice.finish_reason, whole.usage.completion_tokens, whole.model) == ("length", 6, CHAT_MODEL)
    assert choice.logprobs is not None
    assert len(choice.logprobs.content) == 6
    chunks = list(client.chat.completions.create(HELLO, max_tokens=6, temperature=0, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_chat_answers_in_a_form_and_by_a_call(hub: Callable[[str], InferenceClient]) -> None:
    client = hub(CHAT_MODEL)
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": FORM}}
    answer = (
        client.chat_completion(HELLO, max_tokens=60, temperature=0, response_format=form).choices[0].message.content
    )
    assert json.loads(answer or "")["a"] in (1, 2)
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": FORM}}
    answered = client.chat_completion(HELLO, max_tokens=60, temperature=0, tools=[tool], tool_choice="required")
    called = answered.choices[0].message
    assert called.tool_calls is not None
    assert called.tool_calls[0].function.name == "look"


# The model


def test_the_model_tells_of_itself(tasks_service: EmbeddedService, hub: Callable[[str], InferenceClient]) -> None:
    url = f"{tasks_service.api_url}/hf/models"
    client = InferenceClient(provider="hf-inference", base_url=f"{url}/tiny-vit", api_key=tasks_service.api_key)
    assert client.health_check()
    assert client.get_endpoint_info()["model_pipeline_tag"] == "image-classification"
    assert not client.health_check(f"{url}/unknown")


def test_what_a_method_says_beside_its_inputs_reaches_the_job(hub: Callable[[str], InferenceClient]) -> None:
    """text_to_speech() says how tokens are chosen without a level of its own; table_question_answering() names the
    model once more."""
    tables = hub("tiny-tapas")
    answer = tables.table_question_answering(samples.TABLE, samples.TABLE_QUERIES[0], model=tables.model)
    assert isinstance(answer.answer, str)
    with pytest.raises(BadRequestError) as refused:
        hub("tiny-vits").text_to_speech("the sea", do_sample=True, num_beam_groups=2)
    assert refused.value.response.json()["error"]["param"] == "parameters.num_beam_groups"
    several = hub("tiny-bert-answers").question_answering("who slept?", "the old man slept", top_k=2)
    assert isinstance(several, list)
    text = hub("tiny-bart/pipeline/summarization").summarization("the sea", generate_parameters={"max_new_tokens": 3})
    assert isinstance(text.summary_text, str)


@pytest.mark.parametrize(
    ("task", "body"),
    [
        ("depth-estimation", PNG),
        ("zero-shot-object-detection", {"inputs": "…", "parameters": LABELS}),
        ("video-classification", FILM),
    ],
)
def test_tasks_that_the_client_has_no_method_for_take_its_wire_form(
    tasks_service: EmbeddedService, task: str, body: Any
) -> None:
    """A raw body, or JSON with base64."""
    url = f"{tasks_service.api_url}/hf/models/{JOBS[task][0]}/pipeline/{task}"
    key = {"Authorization": f"Bearer {tasks_service.api_key}"}
    if isinstance(body, bytes):
        answer = httpx.post(url, content=body, headers=key, timeout=240)
    else:
        answer = httpx.post(url, json={**body, "inputs": base64.b64encode(PNG).decode()}, headers=key, timeout=240)
    assert answer.status_code == 200, answer.text
    assert answer.json()
