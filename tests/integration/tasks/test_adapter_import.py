"""Adapters that plain PEFT has made elsewhere, served by a whole service: what it answers is what PEFT answers."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from tandem import AdapterMismatch, InvalidRequest, Tandem
from tandem.embedded_service import EmbeddedService
from tandem.settings import Settings

pytestmark = [
    # PEFT asks transformers by a name that it is about to drop.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # Said by PEFT's own generate with virtual tokens, which needs none.
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),
]

CHAT = "smollm2-float32"
PROMPT = "Once upon a time there was a"
TOKENS = 8
ATTENTION = ["q_proj", "v_proj"]

KINDS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION),
    "rslora of mixed ranks": LoraConfig(
        r=8, lora_alpha=16, use_rslora=True, target_modules=[*ATTENTION, "down_proj"], rank_pattern={"down_proj": 3}
    ),
    "dora": LoraConfig(r=4, use_dora=True, target_modules=ATTENTION),
    "adalora": AdaLoraConfig(init_r=6, target_r=4, total_step=9, target_modules=ATTENTION),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prefix tuning": PrefixTuningConfig(num_virtual_tokens=4),
    "prompt tuning": PromptTuningConfig(num_virtual_tokens=4),
    "p-tuning": PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=32),
}


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return Settings.read().models_dir / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def of_the_base(smollm2: Path) -> str:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, local_files_only=True)
    return continuation(model, smollm2)


@pytest.fixture
def base(smollm2: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32, local_files_only=True)


def trained(model: PreTrainedModel, config: PeftConfig, folder: Path) -> PeftModel:
    """A model whose adapter changes what it says, as if it had been trained, saved to `folder`."""
    adapted = get_peft_model(model, config).eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(11)
        for name, weight in adapted.named_parameters():
            if "ia3_l" in name or "magnitude" in name:
                weight.mul_(1 + 0.3 * torch.randn_like(weight))
            elif "lora_E" in name or "prompt_encoder" in name:
                weight.normal_(std=3.0)
            elif "lora_" in name:
                weight.normal_(std=0.05)
    adapted.save_pretrained(folder)
    return adapted


def continuation(model: PreTrainedModel | PeftModel, smollm2: Path) -> str:
    """What `generate` writes after PROMPT, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2, local_files_only=True)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        written = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
    # PEFT's generate answers with the prompt, but without what stands before it.
    return str(tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


def served(client: Tandem, model: str) -> str:
    result = client.run("text-generation", PROMPT, model=model, parameters={"max_new_tokens": TOKENS})
    return str(result["generated_text"])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_served_as_peft_serves_it(
    kind: str, base: PreTrainedModel, of_the_base: str, smollm2: Path, tasks_client: Tandem, tmp_path: Path
) -> None:
    config = KINDS[kind]
    config.task_type = "CAUSAL_LM"
    expected = continuation(trained(base, config, tmp_path), smollm2)
    assert expected != of_the_base
    added = tasks_client.add_adapter(tmp_path, CHAT, suffix="theirs")
    assert (added.base, added.method["peft_type"]) == (CHAT, config.peft_type.value)
    assert (added.job_id, added.record["checked"]) == (None, "files and base")
    assert served(tasks_client, added.id) == expected
    assert served(tasks_client, CHAT) == of_the_base


def test_one_with_a_head_classifies_as_peft_does(
    tasks_client: Tandem, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    labels = {0: "calm", 1: "wild"}
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folders["tiny-bert"], id2label=labels)
    adapted = trained(model, LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS"), tmp_path)
    with pytest.raises(InvalidRequest, match=r"needs config\.json"):
        tasks_client.add_adapter(tmp_path, "tiny-bert")
    model.config.save_pretrained(tmp_path)
    added = tasks_client.add_adapter(tmp_path, "tiny-bert")
    assert (added.task, added.record["checked"]) == ("text-classification", "files and base")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folders["tiny-bert"])
    with torch.inference_mode():
        expected = adapted(**tokenizer("the sea was calm", return_tensors="pt")).logits[0].softmax(-1)
    (found,) = tasks_client.run("text-classification", "the sea was calm", model=added.id)["rows"]
    scores = {label["label"]: label["score"] for label in found}
    assert scores == {label: pytest.approx(float(expected[place]), abs=1e-5) for place, label in labels.items()}


def test_the_command_adds_a_folder(
    base: PreTrainedModel, tasks_service: EmbeddedService, tasks_client: Tandem, tmp_path: Path
) -> None:
    trained(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), tmp_path)
    command = [sys.executable, "-m", "tandem.cli", "adapters"]
    environment = {"TANDEM_URL": tasks_service.api_url, "TANDEM_API_KEY": tasks_service.api_key}

    def run(*arguments: str) -> str:
        return subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, timeout=240, check=True
        ).stdout

    added = run("add", str(tmp_path), "--base", CHAT, "--suffix", "by-command").strip()
    assert added.startswith(f"ft:{CHAT}:default:by-command:")
    assert tasks_client.adapter(added).method["r"] == 2
    assert "LORA r=2, imported" in run("list")


def test_what_does_not_fit_is_refused_and_no_upload_stays(
    base: PreTrainedModel, tasks_client: Tandem, tmp_path: Path
) -> None:
    before = {adapter.id for adapter in tasks_client.adapters()}
    trained(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"), tmp_path)
    with pytest.raises(AdapterMismatch, match="was not trained on 'tiny-llama'"):
        tasks_client.add_adapter(tmp_path, "tiny-llama")
    with pytest.raises(InvalidRequest, match=r"has no adapter_config\.json and no adapter_model\.safetensors"):
        tasks_client.add_adapter(tmp_path.parent, CHAT)
    assert {adapter.id for adapter in tasks_client.adapters()} == before
    key = {"Authorization": f"Bearer {tasks_client.api_key}"}
    uploads = httpx.get(f"{tasks_client.url}/v1/files", params={"purpose": "adapter"}, headers=key)
    assert uploads.json()["data"] == []
