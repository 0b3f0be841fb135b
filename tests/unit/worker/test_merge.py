"""An adapter merged into its base: one model that gives what the two give together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, OFTConfig, PeftConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tandem.errors import InvalidRequest
from tests.tiny_models import build
from tests.unit.engine.adapter_folders import save_adapter
from worker.merge import merge
from worker.tasks.pooling import model_poolings

# PEFT asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.arange(3, 15).unsqueeze(0)
METHODS: dict[str, tuple[type[PeftConfig], dict[str, Any]]] = {
    "lora": (LoraConfig, {"r": 4, "target_modules": ["q_proj", "down_proj"]}),
    "dora": (LoraConfig, {"r": 4, "use_dora": True, "target_modules": ["q_proj"]}),
    "oft": (OFTConfig, {"r": 0, "oft_block_size": 8, "target_modules": ["q_proj"]}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("tiny-llama", tmp_path_factory.mktemp("tiny-llama"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("name", METHODS)
def test_the_merged_model_gives_what_base_and_adapter_give(name: str, base: Path, tmp_path: Path) -> None:
    method, config = METHODS[name]
    plain = AutoModelForCausalLM.from_pretrained(base)
    trained = save_adapter(plain, tmp_path / "adapter", seed=3, spread=0.3, method=method, **config)

    merge(str(base), tmp_path / "adapter", tmp_path / "merged")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", use_safetensors=True)
    torch.testing.assert_close(logits(merged), logits(trained), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits(merged), logits(AutoModelForCausalLM.from_pretrained(base)), atol=1e-2)
    text = "the sea was calm"
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")(text) == AutoTokenizer.from_pretrained(base)(text)


def test_a_head_comes_along(tmp_path: Path) -> None:
    """Of a classifier's adapter, whose labels are in its own config.json."""
    base = build("tiny-bert", tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    model.config.to_json_file(tmp_path / "adapter" / "config.json")

    merge(str(base), tmp_path / "adapter", tmp_path / "merged")

    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert merged.config.id2label == {0: "a", 1: "b", 2: "c"}
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-5, atol=1e-5)


def test_an_encoder_decoder_is_merged_as_one(tmp_path: Path) -> None:
    base = build("tiny-t5", tmp_path / "base")
    model = AutoModelForSeq2SeqLM.from_pretrained(base)
    trained = save_adapter(model, tmp_path / "adapter", seed=3, spread=0.3, task_type="SEQ_2_SEQ_LM", r=4).eval()

    merge(str(base), tmp_path / "adapter", tmp_path / "merged")

    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        found, expected = (each(input_ids=IDS, decoder_input_ids=IDS).logits for each in (merged, trained))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)  # of logits up to 10, through two stacks


def test_virtual_tokens_are_no_weights(base: Path, tmp_path: Path) -> None:
    save_adapter(
        AutoModelForCausalLM.from_pretrained(base), tmp_path, seed=1, method=PromptTuningConfig, num_virtual_tokens=4
    )
    with pytest.raises(InvalidRequest, match=r"PROMPT_TUNING .* cannot be merged"):
        merge(str(base), tmp_path, tmp_path / "merged")


def test_a_folder_with_files_is_not_written_over(base: Path, tmp_path: Path) -> None:
    method, config = METHODS["lora"]
    save_adapter(AutoModelForCausalLM.from_pretrained(base), tmp_path, seed=1, method=method, **config)
    with pytest.raises(InvalidRequest, match="not empty") as raised:
        merge(str(base), tmp_path, tmp_path)
    assert raised.value.param == "out"


def test_an_embedder_is_merged_with_the_files_that_say_how_it_pools(tmp_path: Path) -> None:
    """Without them sentence-transformers would take the mean for every model."""
    base = build("tiny-bert", tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    model = AutoModel.from_pretrained(base)
    config = LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query"], init_lora_weights=False)
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")

    merge(str(base), tmp_path / "adapter", tmp_path / "merged")

    merged = AutoModel.from_pretrained(tmp_path / "merged").eval()
    assert model_poolings(merged) == ["cls"]
    with torch.no_grad():
        expected, plain = adapted(input_ids=IDS)[0], AutoModel.from_pretrained(base).eval()(input_ids=IDS)[0]
        torch.testing.assert_close(merged(input_ids=IDS)[0], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)
