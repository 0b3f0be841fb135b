"""The golden rule of numerics for adapters of encoder-decoders: as by PEFT and transformers' own trainer alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from torch import Tensor
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from tandem.specs.methods import (
    AdaLoraMethod,
    AnyMethod,
    Ia3Method,
    LohaMethod,
    LokrMethod,
    LoraMethod,
    OftMethod,
    VeraMethod,
)
from tests.unit.training.plain_recipe import (
    ADAPTER,
    PEFT_WARNINGS,
    SEED,
    AllocatesRanks,
    SeedsTheFirstStep,
    arguments,
    assert_the_same,
    weights,
)
from tests.unit.training.tiny_encoder_decoders import WRITTEN, learn, model_of, tokenizer_of, written_rows

pytestmark = PEFT_WARNINGS

FAMILIES = ("tiny-t5", "tiny-bart", "tiny-marian")
LEARNING_RATE = 5e-5
"""As in test_golden_methods.py: longer steps would only magnify what rounding does to all but zero gradients. A
mistake in what is computed still shows as a hundred times the tolerance."""
LORA_SETTINGS: dict[str, Any] = {"r": 8, "lora_alpha": 16}
RECIPES: list[tuple[str, str, AnyMethod, Callable[[], PeftConfig]]] = [
    ("tiny-t5", "lora", LoraMethod(dropout=0.1), lambda: LoraConfig(lora_dropout=0.1, **LORA_SETTINGS)),
    ("tiny-bart", "lora", LoraMethod(), lambda: LoraConfig(**LORA_SETTINGS)),
    (
        "tiny-marian",
        "lora",
        LoraMethod(target_modules=("v_proj", "fc1")),
        lambda: LoraConfig(target_modules=["v_proj", "fc1"], **LORA_SETTINGS),
    ),
    ("tiny-t5", "dora", LoraMethod(use_dora=True), lambda: LoraConfig(use_dora=True, **LORA_SETTINGS)),
    (
        "tiny-t5",
        "adalora",
        AdaLoraMethod(type="adalora", init_r=6, target_r=2, tfinal=1, beta1=0.5),
        lambda: AdaLoraConfig(
            init_r=6, target_r=2, tfinal=1, beta1=0.5, total_step=4, orth_reg_weight=0.5, **LORA_SETTINGS
        ),
    ),
    ("tiny-t5", "loha", LohaMethod(type="loha", r=4, alpha=6), lambda: LoHaConfig(r=4, alpha=6)),
    (
        "tiny-t5",
        "lokr",
        LokrMethod(type="lokr", r=2, decompose_both=True, decompose_factor=4),
        lambda: LoKrConfig(r=2, decompose_both=True, decompose_factor=4),
    ),
    ("tiny-t5", "vera", VeraMethod(type="vera", r=16), lambda: VeraConfig(r=16)),
    (
        "tiny-t5",
        "oft",
        OftMethod(type="oft", oft_block_size=8),
        lambda: OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False),
    ),
    ("tiny-t5", "ia3", Ia3Method(type="ia3"), IA3Config),
    ("tiny-bart", "ia3", Ia3Method(type="ia3"), IA3Config),
]


def train_by_the_recipe(config: PeftConfig, base: Path, scratch: Path) -> dict[str, Tensor]:
    """The adapter's weights by PEFT and transformers' own trainer for such models, without anything of Tandem."""
    tokenizer = tokenizer_of(base)
    config.task_type = "SEQ_2_SEQ_LM"
    bare = model_of(base)  # Marian's constructor draws random numbers
    torch.manual_seed(SEED)
    model = get_peft_model(bare, config)
    settings = arguments(
        Seq2SeqTrainingArguments,
        scratch,
        max_steps=4,
        per_device_train_batch_size=3,
        learning_rate=LEARNING_RATE,
        label_names=["labels"],
    )
    rows: Any = [dict(tokenizer(text, text_target=target)) for text, target in WRITTEN.items()] * 2
    for row in rows:
        row.pop("token_type_ids", None)
    trainer = Seq2SeqTrainer(
        model,
        settings,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model.get_base_model()),
        callbacks=[SeedsTheFirstStep()],
    )
    if config.peft_type == "ADALORA":
        trainer.add_callback(AllocatesRanks())
    trainer.train()
    model.save_pretrained(scratch / "adapter")
    return weights(scratch / "adapter")


@pytest.mark.parametrize(
    ("family", "name", "method", "config"), RECIPES, ids=[f"{family}-{name}" for family, name, *_ in RECIPES]
)
def test_the_adapter_is_the_plain_recipes(
    family: str,
    name: str,
    method: AnyMethod,
    config: Callable[[], PeftConfig],
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """On the twin of a resident, in turns, with dropout: the same weights. The resident stays what it was."""
    base = tiny_folder(family)
    resident = model_of(base)
    before = {key: tensor.clone() for key, tensor in resident.state_dict().items()}
    learn(
        resident,
        base,
        tmp_path / "adapter",
        rows=written_rows() * 2,
        method=method,
        seed=SEED,
        learning_rate=LEARNING_RATE,
    )
    expected = train_by_the_recipe(config(), base, tmp_path / "scratch")
    assert_the_same(weights(tmp_path / "adapter"), expected)
    for key, tensor in resident.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_loads_in_peft_and_does_what_was_learned(
    family: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """On a fresh base, row by row, by PEFT's forward and the model's own loss: that of the last evaluation."""
    base, rows = tiny_folder(family), written_rows()
    method = LoraMethod(target_modules=("q_proj", "v_proj")) if family == "tiny-marian" else LoraMethod()
    outcome = learn(model_of(base), base, tmp_path, validation_rows=rows, method=method, max_steps=8)
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < outcome.validation_loss_before
    assert {path.name for path in tmp_path.iterdir()} == {ADAPTER, "adapter_config.json"}
    model = PeftModel.from_pretrained(model_of(base), tmp_path).eval()
    tokenizer, total, tokens = tokenizer_of(base), 0.0, 0
    for text, target in WRITTEN.items():
        labels = torch.tensor([tokenizer(text_target=target)["input_ids"]])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]), labels=labels).loss
        total += float(loss) * labels.numel()
        tokens += labels.numel()
    assert total / tokens == pytest.approx(outcome.validation_loss_after, abs=1e-5)
