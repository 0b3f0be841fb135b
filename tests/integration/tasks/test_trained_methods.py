"""Methods of fine-tuning besides LoRA, from a job of a whole service to the answers of one batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tandem import InvalidRequest, Tandem
from tandem.embedded_service import EmbeddedService

pytestmark = [
    # PEFT asks transformers by a name that it is about to drop.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # It looks for the ranks that AdaLoRA kept by LoRA's rule too, under which they match nothing.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]

BASE = "tiny-llama"
ROWS = [{"prompt": "the sea was ", "completion": "calm"}, {"prompt": "rain fell on the ", "completion": "town"}] * 8
METHODS: dict[str, dict[str, Any]] = {
    "ia3": {"type": "ia3"},
    "prefix": {"type": "prefix-tuning", "num_virtual_tokens": 5},
    "prompt": {"type": "prompt-tuning", "num_virtual_tokens": 5, "prompt_tuning_init": "sample_vocab"},
    "dora": {"type": "lora", "r": 4, "use_dora": True},
    "adalora": {"type": "adalora", "init_r": 6, "target_r": 3, "tfinal": 4},
    "loha": {"type": "loha", "r": 4},
    "lokr": {"type": "lokr", "r": 2, "decompose_both": True},
    "vera": {"type": "vera", "r": 32},
    "oft": {"type": "oft", "oft_block_size": 8},
    "highest": {"type": "lora", "r": 96},
}
APART = ("oft", "highest")
"""Those that no slot of the batch holds: a rotation, and a rank above TANDEM_ADAPTER_RANK."""
TRAINING = {"max_steps": 16, "batch_size": 4, "learning_rate": 5e-2}
PROMPT = "the sea was "


@pytest.fixture(scope="module")
def trained(tasks_service: EmbeddedService) -> Iterator[dict[str, dict[str, Any]]]:
    """The result of a training by each method on one base."""
    with Tandem(tasks_service.api_url, tasks_service.api_key) as client:
        jobs = {
            name: client.finetune(BASE, ROWS, suffix=name, method=method, hyperparameters=TRAINING)
            for name, method in METHODS.items()
        }
        yield {name: job.wait(timeout=240) for name, job in jobs.items()}


def test_an_adapter_says_what_it_is_made_of(tasks_client: Tandem, trained: dict[str, dict[str, Any]]) -> None:
    """And the job's answer, whether it is served in one batch with others."""
    for name, method in METHODS.items():
        assert trained[name]["served"] == ("apart" if name in APART else "mixed-batch")
        adapter = tasks_client.adapter(trained[name]["adapter"])
        assert method.items() <= adapter.method.items()


def test_all_are_served_at_once_as_peft_would_serve_them(
    tasks_client: Tandem, trained: dict[str, dict[str, Any]], tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    jobs = {
        name: tasks_client.submit(
            "text-generation", PROMPT, model=result["adapter"], parameters={"max_new_tokens": 6}
        )
        for name, result in trained.items()
    }
    base = tiny_folders[BASE]
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(PROMPT)["input_ids"]
    for name, job in jobs.items():
        folder = tasks_client.download_adapter(trained[name]["adapter"], tmp_path / name)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
        text = tokenizer.decode([*ids, *greedy(model, ids)], skip_special_tokens=True)
        answer = job.wait(timeout=240)
        assert answer["path"] == ("generate" if name in APART else "engine")
        assert tokenizer.decode(ids, skip_special_tokens=True) + answer["generated_text"] == text, name


def greedy(model: PeftModel, ids: list[int]) -> list[int]:
    """The six most likely tokens, one after the other, or those up to the end of the text."""
    tokens: list[int] = []
    while len(tokens) < 6 and tokens[-1:] != [model.config.eos_token_id]:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*ids, *tokens]])).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens


def test_virtual_tokens_are_refused_for_an_encoders_task(tasks_client: Tandem) -> None:
    """Before anything is queued, by name."""
    rows = [{"text": "rain", "label": "a"}, {"text": "sea", "label": "b"}]
    with pytest.raises(InvalidRequest, match="for text-classification use lora or ia3") as raised:
        tasks_client.finetune("tiny-bert", rows, task="text-classification", method={"type": "prefix-tuning"})
    assert raised.value.param == "method"
