"""An adapter that makes embeddings, from rows of questions and answers to vectors, in a whole service."""

from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from tandem import InvalidRequest, InvalidTrainingData, Tandem, UnsupportedTask
from tandem.embedded_service import EmbeddedService

# PEFT asks transformers by a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

BASE = "tiny-bert"
ROWS: list[dict[str, Any]] = [
    {"query": "who slept?", "answer": "the old man"},
    {"query": "what was calm?", "answer": "the sea", "negative": "the night"},
    {"query": "what fell?", "answer": "rain"},
    {"query": "who won?", "answer": "Anna in Paris", "negative": "nobody"},
]
TEXTS = ["the sea was calm", "who won the match", "rain"]


@pytest.fixture(scope="module")
def trained(tasks_service: EmbeddedService) -> dict[str, Any]:
    """The result of a training."""
    with Tandem(tasks_service.api_url, tasks_service.api_key) as client:
        job = client.finetune(
            BASE,
            ROWS * 4,
            ROWS,
            task="feature-extraction",
            method={"alpha": 32},
            hyperparameters={"max_steps": 20, "batch_size": 4, "learning_rate": 1e-2},
        )
        return dict(job.wait(timeout=240))


def of_peft(base: Path, folder: Path | None) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModel.from_pretrained(base).eval()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).eval().base_model.model
    with torch.no_grad():
        vectors = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    return F.normalize(torch.stack(vectors), dim=1)


def test_a_training_tells_how_many_questions_find_their_answer(trained: dict[str, Any]) -> None:
    """Among those of the batch, before and after; and that the adapter is served beside all others."""
    assert trained["served"] == "mixed-batch"
    metrics = trained["metrics"]
    before, after = (metrics[f"validation_figures_{when}"]["in_batch_accuracy"] for when in ("before", "after"))
    assert 0.0 <= before < after <= 1.0
    assert metrics["validation_loss_after"] < metrics["validation_loss_before"]


def test_its_embeddings_are_pefts_by_every_door(
    tasks_service: EmbeddedService,
    tasks_client: Tandem,
    trained: dict[str, Any],
    tiny_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    """As a job, through OpenAI's SDK, and compared; the base's, asked for meanwhile, are its own."""
    adapter = trained["adapter"]
    jobs = [tasks_client.submit("feature-extraction", TEXTS, model=model) for model in (adapter, BASE)]
    compared = tasks_client.submit(
        "sentence-similarity", {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}, model=adapter
    )
    with openai.OpenAI(
        base_url=f"{tasks_service.api_url}/v1",
        api_key=tasks_service.api_key,
        timeout=240,
        _strict_response_validation=True,
    ) as sdk:
        answer = sdk.embeddings.create(model=adapter, input=TEXTS, encoding_format="float")
    expected = of_peft(tiny_folders[BASE], tasks_client.download_adapter(adapter, tmp_path / "adapter"))
    found = [job.wait(timeout=240)["rows"] for job in jobs]
    for vectors, wanted in (
        (found[0], expected),
        (found[1], of_peft(tiny_folders[BASE], None)),
        ([one.embedding for one in answer.data], expected),
    ):
        torch.testing.assert_close(torch.tensor(vectors), wanted, atol=1e-5, rtol=0)
    assert answer.model == adapter
    assert answer.usage.prompt_tokens > len(TEXTS)
    similarities = (expected[1:] @ expected[0]).tolist()
    assert compared.wait(timeout=240)["rows"][0] == pytest.approx(similarities, abs=1e-5)


def test_it_does_no_other_task(tasks_client: Tandem, trained: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedTask, match="trained for feature-extraction, not for text-classification"):
        tasks_client.submit("text-classification", "rain", model=trained["adapter"])


def test_rows_and_methods_that_do_not_fit_are_refused_before_anything_is_queued(tasks_client: Tandem) -> None:
    with pytest.raises(InvalidTrainingData, match="line 2: has no `positive`; a row for feature-extraction is"):
        tasks_client.finetune(BASE, [ROWS[0], {"query": "who?"}], task="feature-extraction")
    with pytest.raises(InvalidRequest, match="for feature-extraction use lora or ia3"):
        tasks_client.finetune(BASE, ROWS, task="feature-extraction", method={"type": "prefix-tuning"})
