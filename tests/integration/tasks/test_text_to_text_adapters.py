"""Adapters of encoder-decoders, from a job of a whole service, or from plain PEFT, to what jobs with them write."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tandem import InvalidRequest, Tandem, UnsupportedTask
from tandem.embedded_service import EmbeddedService

# PEFT asks transformers by a name that it is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS = [
    {"source": "the cat sat on the mat", "target": "rain fell all night"},
    {"source": "the house is small", "target": "the sea was calm"},
] * 6
TEXTS = ["the cat sat on the mat", "the house is small"]
WRITING = {"max_new_tokens": 6, "num_beams": 1}
TRAINING = {"max_steps": 40, "batch_size": 4, "learning_rate": 2e-2}
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("tiny-t5", {"type": "lora", "r": 8}),
    "oft": ("tiny-t5", {"type": "oft", "oft_block_size": 8}),
    "marian": ("tiny-marian", {"type": "lora", "r": 8}),
}
"""Of a job: its base, and its method. The catalogue lists tiny-marian for translation alone."""


@pytest.fixture(scope="module")
def trained(tasks_service: EmbeddedService) -> Iterator[dict[str, dict[str, Any]]]:
    """The results of trainings at once."""
    with Tandem(tasks_service.api_url, tasks_service.api_key) as client:
        jobs = {
            name: client.finetune(
                base,
                ROWS,
                ROWS[:2],
                task="text2text-generation",
                suffix=name,
                method=method,
                hyperparameters=TRAINING,
            )
            for name, (base, method) in JOBS.items()
        }
        yield {name: job.wait(timeout=240) for name, job in jobs.items()}


def written(model: Any, base: Path, before: str = "") -> list[str]:
    """What `model` writes for each text with `before` in front of it, by its own `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(before + text)["input_ids"]])
        (output,) = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **WRITING)
        texts.append(tokenizer.decode(output, skip_special_tokens=True))
    return texts


def by_peft(base: Path, folder: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), str(folder)).eval()


def ask(client: Tandem, task: str, adapter: str, field: str) -> list[str]:
    """What a job with the adapter writes for each text."""
    result = client.run(task, TEXTS, model=adapter, parameters={"generate_parameters": WRITING})
    return [text[field] for (text,) in result["rows"]]


@pytest.mark.parametrize("name", JOBS)
def test_what_was_learned_is_written_as_peft_writes_it(
    name: str,
    tasks_client: Tandem,
    trained: dict[str, dict[str, Any]],
    tiny_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    """The job says that the adapter is served apart; its downloaded folder is PEFT's, and gives the same texts."""
    result, base = trained[name], tiny_folders[JOBS[name][0]]
    assert result["served"] == "apart"
    assert result["metrics"]["validation_loss_after"] < result["metrics"]["validation_loss_before"]
    folder = tasks_client.download_adapter(result["adapter"], tmp_path / name)
    expected = written(by_peft(base, folder), base)
    assert ask(tasks_client, "text2text-generation", result["adapter"], "generated_text") == expected
    assert expected != written(AutoModelForSeq2SeqLM.from_pretrained(base).eval(), base)


def test_the_bases_other_tasks_are_done_with_the_same_adapter(
    tasks_client: Tandem, trained: dict[str, dict[str, Any]], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    """A job of summarization puts T5's words for it before each text, as without an adapter; and the base alone still
    writes what it wrote."""
    base, adapter = tiny_folders["tiny-t5"], trained["lora"]["adapter"]
    model = by_peft(base, tasks_client.download_adapter(adapter, tmp_path / "lora"))
    expected = written(model, base, "summarize: ")
    assert ask(tasks_client, "summarization", adapter, "summary_text") == expected
    assert ask(tasks_client, "translation", trained["marian"]["adapter"], "translation_text")
    plain = written(AutoModelForSeq2SeqLM.from_pretrained(base).eval(), base)
    assert ask(tasks_client, "text2text-generation", "tiny-t5", "generated_text") == plain
    with pytest.raises(UnsupportedTask, match="was trained for text2text-generation, not for fill-mask"):
        tasks_client.run("fill-mask", "the [MASK]", model=adapter)


def test_an_adapter_trained_elsewhere_is_served_too(
    tasks_client: Tandem, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_folders["tiny-bart"]
    config = LoraConfig(r=4, lora_alpha=16, task_type="SEQ_2_SEQ_LM", target_modules=["q_proj", "fc1"])
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        model = get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), config).eval()
        for weight in (each for name, each in model.named_parameters() if "lora_" in name):
            weight.normal_(std=0.3)
    model.save_pretrained(str(tmp_path))
    adapter = tasks_client.add_adapter(tmp_path, "tiny-bart", suffix="from-peft")
    assert adapter.task == "text2text-generation"
    assert ask(tasks_client, "text2text-generation", adapter.id, "generated_text") == written(model, base)


def test_what_cannot_be_learned_is_refused_before_anything_is_queued(tasks_client: Tandem) -> None:
    """Virtual tokens by their name, another model's task, and rows of another shape by their line."""
    with pytest.raises(InvalidRequest, match="for text2text-generation use lora or ia3"):
        tasks_client.finetune("tiny-t5", ROWS, task="text2text-generation", method={"type": "p-tuning"})
    with pytest.raises(UnsupportedTask, match="text2text-generation"):
        tasks_client.finetune("tiny-llama", ROWS, task="text2text-generation")
    with pytest.raises(InvalidRequest, match=r'line 1: has no `target`; a row for text2text-generation is \{"input"'):
        tasks_client.finetune("tiny-t5", [{"source": "the sea"}], task="text2text-generation")
