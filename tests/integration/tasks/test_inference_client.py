"""Every task that huggingface_hub's InferenceClient has a method for: the client unchanged but for its address."""

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient, constants

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
        answer = httpx.post(url, content=body, headers=key, timeout=60)
    else:
        answer = httpx.post(url, json={**body, "inputs": base64.b64encode(PNG).decode()}, headers=key, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()
