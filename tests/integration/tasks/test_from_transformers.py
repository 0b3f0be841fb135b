"""The programs of docs/from-transformers.md, run as they stand there, against a whole service with tiny models."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from tandem.embedded_service import EmbeddedService

# PEFT asks transformers by a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

PAGE = Path(__file__).parents[3] / "docs" / "from-transformers.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page(
    tasks_service: EmbeddedService, tiny_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """What the page's programs leave in their variables, run one after the other in a folder of their own."""
    names: dict[str, Any] = {"base_folder": tiny_folders["tiny-llama"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANDEM_URL", tasks_service.api_url)
        patch.setenv("TANDEM_API_KEY", tasks_service.api_key)
        patch.chdir(tmp_path_factory.mktemp("page"))
        for number, block in enumerate(BLOCK.findall(PAGE.read_text(encoding="utf-8"))):
            exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)  # noqa: S102 - our own page
        names["folder"] = names["folder"].absolute()
    yield names
    names["client"].close()


def test_generation_is_the_models_own(page: dict[str, Any], tiny_folders: dict[str, Path]) -> None:
    library = pipeline("text-generation", model=str(tiny_folders["tiny-llama"]))
    for name, prompt, tokens in (
        ("answer", "What is transformers?", 100),
        ("meaning", "What is the meaning of life?", 50),
        ("code", "def fibonacci(n):", 50),
    ):
        (expected,) = library(prompt, max_new_tokens=tokens, do_sample=False, return_full_text=False)
        assert page[name]["generated_text"] == expected["generated_text"]


def test_classification_takes_the_catalogues_default(page: dict[str, Any], tiny_folders: dict[str, Path]) -> None:
    library = pipeline("text-classification", model=str(tiny_folders["tiny-bert-sentiment"]))
    expected = library("I love this movie!", top_k=None)
    assert [entry["label"] for entry in page["labels"]["rows"][0]] == [entry["label"] for entry in expected]
    for found, wanted in zip(page["labels"]["rows"][0], expected, strict=True):
        assert found["score"] == pytest.approx(wanted["score"], abs=1e-5)


def test_a_translation_and_an_answer_come_back(page: dict[str, Any]) -> None:
    """That they are the library's is what tests/golden says."""
    assert page["translation"]["rows"][0][0]["translation_text"]
    answer = page["found"]["rows"][0]
    assert page["context"][answer["start"] : answer["end"]] == answer["answer"]
    assert 0 <= answer["score"] <= 1


def test_the_training_was_the_one_that_was_asked_for(page: dict[str, Any]) -> None:
    """544 rows, 4 at a time, 4 times accumulated, 3 epochs: 102 optimizer steps, a checkpoint after the 100th."""
    events = list(page["training"].events())
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps[-1] == 102
    assert steps[:-1] == list(range(10, 101, 10))
    assert [event.data["step"] for event in events if event.type == "checkpoint"] == [100]
    config = page["lora_model"].peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (8, 32, 0.05)
    assert config.target_modules == {"q_proj", "v_proj"}
    weights = load_file(page["folder"] / "adapter_model.safetensors")
    assert all(torch.count_nonzero(tensor) for name, tensor in weights.items() if "lora_B" in name)


def test_the_adapter_serves_what_peft_computes(page: dict[str, Any]) -> None:
    prompt = page["inputs"]["input_ids"].shape[1]
    text = page["tokenizer"].decode(page["outputs"][0][prompt:], skip_special_tokens=True)
    assert page["tuned"]["generated_text"] == text
