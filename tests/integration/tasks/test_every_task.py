"""Every task as a job of a running service, by the client and by huggingface_hub's InferenceClient."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from tandem import InvalidRequest, Tandem, TandemError, UnsupportedTask
from tandem.embedded_service import EmbeddedService
from tandem.specs import TASKS
from tests.tiny_models import samples
from tests.tiny_models.calls import SOUND_PROMPT

PICTURE = samples.image(96, 64)
SOUND = samples.wav(samples.sound())
FILM = samples.mp4(samples.frames(16))
PAGE = samples.document()
CHAT = [
    {
        "role": "user",
        "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "what is the price?"}],
    }
]
LABELS = {"candidate_labels": ["red", "green"]}

JOBS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "text-generation": ("tiny-llama", "the sea", {"max_new_tokens": 4}),
    "feature-extraction": ("tiny-bert", "the sea", {}),
    "sentence-similarity": ("all-minilm-l6-v2", {"source_sentence": "a cat", "sentences": ["a dog", "tax law"]}, {}),
    "fill-mask": ("tiny-bert-masked", "the [MASK] sat on the mat", {}),
    "text-classification": ("tiny-bert-sentiment", "the sea was calm", {}),
    "token-classification": ("tiny-bert-entities", "Anna Smith works at the bank in London", {}),
    "zero-shot-classification": ("tiny-bert-nli", "who won the match", {"candidate_labels": ["sport", "money"]}),
    "question-answering": ("tiny-bert-answers", {"question": "who slept?", "context": "the old man slept"}, {}),
    "table-question-answering": ("tiny-tapas", {"query": samples.TABLE_QUERIES[0], "table": samples.TABLE}, {}),
    "summarization": ("tiny-t5", samples.SENTENCES[3], {"generate_parameters": {"max_new_tokens": 5}}),
    "translation": ("tiny-marian", "the house is small", {"generate_parameters": {"max_new_tokens": 5}}),
    "text2text-generation": ("tiny-bart", "the house", {"generate_parameters": {"max_new_tokens": 5}}),
    "decision": ("tiny-llama", samples.decision(), {}),
    "image-classification": ("tiny-vit", PICTURE, {}),
    "image-feature-extraction": ("tiny-vit-features", PICTURE, {}),
    "image-segmentation": ("tiny-segformer", PICTURE, {}),
    "image-to-image": ("tiny-swin2sr", PICTURE, {}),
    "object-detection": ("tiny-yolos", PICTURE, {"threshold": 0.0}),
    "depth-estimation": ("tiny-dpt", PICTURE, {}),
    "mask-generation": ("tiny-sam", PICTURE, {}),
    "keypoint-matching": ("tiny-superglue", {"images": [PICTURE, samples.image(80, 80, seed=3)]}, {}),
    "video-classification": ("tiny-videomae", FILM, {}),
    "zero-shot-image-classification": ("tiny-clip", PICTURE, LABELS),
    "zero-shot-object-detection": ("tiny-owlvit", PICTURE, {**LABELS, "threshold": 0.0}),
    "audio-classification": ("tiny-wav2vec2", SOUND, {}),
    "automatic-speech-recognition": ("tiny-wav2vec2-ctc", SOUND, {}),
    "text-to-audio": ("tiny-vits", "the sea was calm", {}),
    "zero-shot-audio-classification": ("tiny-clap", SOUND, {"candidate_labels": ["music", "speech"]}),
    "document-question-answering": (
        "tiny-layoutlm",
        {"image": PAGE["image"], "question": PAGE["question"]},
        {"word_boxes": PAGE["word_boxes"]},
    ),
    "visual-question-answering": ("tiny-vilt", {"image": PICTURE, "question": "what is the price?"}, {}),
    "image-text-to-text": ("tiny-llava", CHAT, {"max_new_tokens": 4}),
    "image-to-text": ("tiny-donut-captions", PICTURE, {"max_new_tokens": 4}),
    "any-to-any": (
        "tiny-qwen2-audio",
        {"audio": SOUND, "text": SOUND_PROMPT},
        {"generation_parameters": {"max_new_tokens": 4}},
    ),
}
"""Task → a model, an input as a program has it in its hands, and parameters."""


@pytest.fixture(scope="module")
def rows(tasks_service: EmbeddedService) -> Iterator[dict[str, Any]]:
    """The result of each task's job; all were submitted before the first was waited for."""
    with Tandem(tasks_service.api_url, tasks_service.api_key) as client:
        jobs = {
            task: client.submit(task, inputs, model=model, parameters=parameters)
            for task, (model, inputs, parameters) in JOBS.items()
        }
        yield {task: _result(job.wait) for task, job in jobs.items()}


def _result(wait: Callable[[], Any]) -> Any:
    try:
        return wait()
    except TandemError as error:
        return error


def test_every_task_is_here() -> None:
    assert set(JOBS) == set(TASKS)


@pytest.mark.parametrize("task", JOBS)
def test_a_job_of_the_task_succeeds(rows: dict[str, Any], task: str) -> None:
    """What it gives is the library's own answer: tests/golden compares them."""
    result = rows[task]
    assert not isinstance(result, TandemError), result
    if task == "text-generation":
        assert result["completion_tokens"] <= 4
    else:
        assert len(result["rows"]) == 1
        assert "error" not in json.dumps(result["rows"][0])[:10]


def test_files_of_a_result_are_read_by_the_client_and_by_another_job(
    rows: dict[str, Any], tasks_client: Tandem
) -> None:
    depth = rows["depth-estimation"]["rows"][0]["depth"]
    image = Image.open(io.BytesIO(tasks_client.read_file(depth)))
    assert (image.size, depth["media_type"]) == (PICTURE.size, "image/png")
    labels = tasks_client.run("image-classification", depth["artifact"], model="tiny-vit")["rows"][0]
    assert sum(label["score"] for label in labels) == pytest.approx(1.0, abs=1e-4)


def test_many_inputs_are_one_job_and_a_bad_one_keeps_its_error(tasks_client: Tandem) -> None:
    pictures = [PICTURE, b"no image", samples.image(50, 70)]
    result = tasks_client.submit("image-classification", pictures, model="tiny-vit", on_row_error="keep").wait(
        timeout=60
    )
    good, bad, other = result["rows"]
    assert bad["error"]["code"] == "invalid_request"
    assert bad["error"]["param"] == "inputs[1]"
    assert good[0]["score"] > 0
    assert other[0]["score"] > 0
    with pytest.raises(InvalidRequest, match=r"inputs\[1\]"):
        tasks_client.run("image-classification", pictures, model="tiny-vit")


def test_a_bomb_is_that_jobs_error(tasks_client: Tandem, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with pytest.raises(InvalidRequest, match="100,000,000 pixels"):
        tasks_client.run("image-classification", path, model="tiny-vit")


def test_map_gives_each_input_its_row(tasks_client: Tandem) -> None:
    texts = [f"the sea was calm {number}" for number in range(100)]
    mapped = list(tasks_client.map("text-classification", [*texts, ""], rows=16, on_error="return"))
    assert isinstance(mapped.pop(), InvalidRequest)
    alone = tasks_client.run("text-classification", texts[77])["rows"][0]
    assert [label["label"] for label in mapped[77]] == [label["label"] for label in alone]
    assert len(mapped) == 100


def test_a_large_image_is_uploaded_first(tasks_client: Tandem, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    path = tmp_path / "noise.png"
    Image.fromarray(noise).save(path)
    assert path.stat().st_size > 2_000_000
    assert tasks_client.run("image-classification", path, model="tiny-vit")["rows"][0]


def test_a_parameter_is_refused_by_name_before_it_is_queued(tasks_client: Tandem) -> None:
    with pytest.raises(InvalidRequest, match="unsupported parameter") as refused:
        tasks_client.submit("image-classification", PICTURE, model="tiny-vit", parameters={"top": 3})
    assert refused.value.param == "parameters.top"
    with pytest.raises(UnsupportedTask, match="tiny-vit"):
        tasks_client.submit("object-detection", PICTURE, model="tiny-vit")


def test_models_show_where_they_are_and_what_they_weigh(rows: dict[str, Any], tasks_client: Tandem) -> None:
    models = {model.id: model for model in tasks_client.models()}
    (place,) = models["tiny-vit"].resident
    assert (place["task"], place["device"]) == ("image-classification", "cpu")
    assert place["bytes"] > 1000
    assert "text-classification" in models["distilbert-base-uncased-finetuned-sst-2-english"].default_for


def test_batches_are_in_the_metrics(rows: dict[str, Any], tasks_service: EmbeddedService) -> None:
    url = f"{tasks_service.api_url}/metrics"
    assert httpx.get(url).status_code == 401
    text = httpx.get(url, headers={"Authorization": f"Bearer {tasks_service.api_key}"}).text
    line = next(
        line for line in text.splitlines() if line.startswith("tandem_batch_rows_total") and 'tiny-vit"' in line
    )
    assert float(line.rsplit(" ", 1)[1]) >= 1
    assert "tandem_batch_wait_seconds_total" in text


# By huggingface_hub's client, unchanged but for its address.


@pytest.fixture
def hub(tasks_service: EmbeddedService) -> Callable[[str], InferenceClient]:
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
