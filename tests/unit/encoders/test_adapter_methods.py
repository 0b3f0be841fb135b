"""An encoder's adapters of other methods than LoRA: IA3, DoRA and AdaLoRA, mixed in one forward, equal PEFT alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from tandem.errors import InvalidRequest
from tests.one_thread import one_thread  # noqa: F401 - pytest finds it here
from tests.unit.encoders.adapter_folders import library_model, save_body
from tests.unit.encoders.tiny_models import SENTENCES
from worker.encoders.adapted_body import AdaptedBody, BodyRow
from worker.encoders.adapter_heads import head_modules
from worker.encoders.encoder_adapter import read_encoder_adapter

# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOLERANCE = 1e-5
"""Between a padded mixed batch and one text alone, float32: rounding in another order of summation."""

METHODS: dict[str, tuple[type[PeftConfig], dict[str, Any]]] = {
    "lora": (LoraConfig, {"r": 4, "target_modules": ["query", "value"]}),
    "dora": (LoraConfig, {"r": 4, "use_dora": True, "target_modules": ["query", "output.dense"]}),
    "adalora": (AdaLoraConfig, {"init_r": 4, "lora_alpha": 32, "total_step": 9, "target_modules": ["query"]}),
    "ia3": (
        IA3Config,
        {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]},
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_body("bert", tmp_path_factory.mktemp("bert"))


def save(base: Path, folder: Path, name: str, *, seed: int) -> None:
    """The adapter with a head as training leaves it, all its weights random."""
    method, options = METHODS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
        trained = get_peft_model(model, method(task_type="SEQ_CLS", modules_to_save=head_modules(model), **options))
        with torch.no_grad():
            for key, weight in trained.named_parameters():
                if "lora_magnitude_vector" in key or "ia3_l" in key:
                    weight.mul_(1 + 0.3 * torch.randn(weight.shape))
                elif "lora_" in key or "modules_to_save" in key:
                    weight.normal_(std=0.3)
    trained.save_pretrained(folder)
    model.config.save_pretrained(folder)


def test_mixed_methods_equal_peft_alone(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    adapters = {}
    for seed, name in enumerate(METHODS):
        save(base, tmp_path / name, name, seed=seed)
        adapters[name] = read_encoder_adapter(name, tmp_path / name, model)
    body = AdaptedBody(model, adapter_slots=4, adapter_rank=8)
    order = [None, *METHODS, None, *METHODS]
    inputs = [dict(tokenizer(text, return_tensors="pt")) for text in (SENTENCES * 2)[: len(order)]]

    rows = [
        BodyRow(body.arguments(value), None if name is None else adapters[name])
        for value, name in zip(inputs, order, strict=True)
    ]
    output = body.forward(rows)
    plain = body.forward([BodyRow(row.inputs, None) for row in rows])

    for place, name in enumerate(order):
        if name is None:
            assert torch.equal(output.of([place]).last_hidden_state, plain.of([place]).last_hidden_state)
            continue
        with adapters[name].stand_in.giving(output.of([place])), torch.no_grad():
            found = adapters[name].head(**inputs[place]).logits
        with adapters[name].stand_in.giving(plain.of([place])), torch.no_grad():
            without = adapters[name].head(**inputs[place]).logits
        with torch.no_grad():
            expected = library_model(base, tmp_path / name, "SEQ_CLS")(**inputs[place]).logits
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
        assert (found - without).abs().max() > 100 * TOLERANCE


def test_virtual_tokens_are_not_served_on_an_encoder(base: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    get_peft_model(model, config).save_pretrained(tmp_path)

    with pytest.raises(
        InvalidRequest, match="peft_type is 'PREFIX_TUNING'; LORA, ADALORA, LOHA, LOKR, VERA, IA3 are served"
    ):
        read_encoder_adapter("mine", tmp_path, AutoModel.from_pretrained(base))


def test_vectors_of_the_head_are_refused(tmp_path: Path) -> None:
    """As LoRA weights of the head are: a head is trained whole. DeBERTa's pooler is a part of its head."""
    base, folder = save_body("deberta-v2", tmp_path / "body"), tmp_path / "mine"
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
    config = IA3Config(task_type="SEQ_CLS", target_modules=["pooler.dense"], feedforward_modules=[])
    get_peft_model(model, config).save_pretrained(folder)
    model.config.save_pretrained(folder)

    with pytest.raises(InvalidRequest, match=r"has IA3 weights of its head \(base_model.model.pooler.dense.ia3_l\)"):
        read_encoder_adapter("mine", folder, AutoModel.from_pretrained(base))
