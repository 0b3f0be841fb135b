"""Adapters of encoder-decoders: the numerics of their training, what is published, and what is refused."""

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
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from tandem.errors import Draining, InvalidRequest, InvalidTrainingData, UnsupportedTask
from tandem.specs.methods import (
    AdaLoraMethod,
    AnyMethod,
    Ia3Method,
    LohaMethod,
    LokrMethod,
    LoraMethod,
    OftMethod,
    PromptTuningMethod,
    VeraMethod,
)
from tandem.specs.training_rows import TextRow, TextToTextRow
from tests.tiny_models import build
from tests.unit.training.interrupted import Shelf, comparable, stop_at
from tests.unit.training.test_golden_methods import AllocatesRanks
from tests.unit.training.test_headed_training import SEED, SeedsTheFirstStep
from tests.unit.training.tiny_encoder_decoders import WRITTEN, learn, model_of, tokenizer_of, written_rows
from worker.training.loss import IGNORED_LABEL
from worker.training.objectives.text_to_text import TextToText
from worker.training.target_loss import TargetLoss
from worker.training.targets import linear_paths, update_targets
from worker.training.twin import layers

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter or wraps a model.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT suspects a fault of sharding where AdaLoRA has taken all ranks of a layer,
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape:peft.utils.warning.PeftWarning"),
    # and looks for the ranks that it kept by LoRA's rule too, under which they match nothing.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]

ADAPTER = "adapter_model.safetensors"
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


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")
    return lambda name: root / name if (root / name).exists() else build(name, root / name)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / ADAPTER)


def train_by_the_recipe(config: PeftConfig, base: Path, scratch: Path) -> dict[str, Tensor]:
    """The adapter's weights by PEFT and transformers' own trainer for such models, without anything of Tandem."""
    tokenizer = tokenizer_of(base)
    config.task_type = "SEQ_2_SEQ_LM"
    bare = model_of(base)  # Marian's constructor draws random numbers
    torch.manual_seed(SEED)
    model = get_peft_model(bare, config)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(scratch),
        max_steps=4,
        per_device_train_batch_size=3,
        learning_rate=LEARNING_RATE,
        seed=SEED,
        data_seed=SEED,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        label_names=["labels"],
    )
    rows: Any = [dict(tokenizer(text, text_target=target)) for text, target in WRITTEN.items()] * 2
    for row in rows:
        row.pop("token_type_ids", None)
    trainer = Seq2SeqTrainer(
        model,
        arguments,
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
    base_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """On the twin of a resident, in turns, with dropout: the same weights. The resident stays what it was."""
    base = base_of(family)
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
    found = weights(tmp_path / "adapter")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0.0, atol=1e-6, msg=lambda text, key=key: f"{key} {text}")
    for key, tensor in resident.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_loads_in_peft_and_does_what_was_learned(
    family: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """On a fresh base, row by row, by PEFT's forward and the model's own loss: that of the last evaluation."""
    base, rows = base_of(family), written_rows()
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


@pytest.mark.parametrize(
    ("method", "call"),
    [
        pytest.param(LoraMethod(dropout=0.2), 8, id="lora in an accumulation"),
        pytest.param(OftMethod(type="oft", oft_block_size=8), 13, id="oft in an evaluation"),
    ],
)
def test_resumed_equals_uninterrupted(
    method: AnyMethod, call: int, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_of("tiny-t5")
    exacting: dict[str, Any] = {
        "method": method,
        "validation_rows": written_rows()[2:],
        "max_steps": 5,
        "gradient_accumulation_steps": 2,
        "eval_steps": 3,
    }
    whole = learn(model_of(base), base, tmp_path / "whole", **exacting)
    shelf = Shelf(tmp_path / "shelf")
    with pytest.raises(Draining):
        learn(model_of(base), base, tmp_path / "part", check=stop_at(call), on_checkpoint=shelf, **exacting)
    assert shelf.steps
    torch.rand(100)  # another worker's generator stands elsewhere
    resumed = learn(model_of(base), base, tmp_path / "resumed", resume_from=shelf.last, **exacting)
    assert comparable(resumed) == comparable(whole)
    for file in (ADAPTER, "adapter_config.json"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_in_chunks_is_the_models_own(family: str, base_of: Callable[[str], Path]) -> None:
    """T5's scaled states and the bias that BART and Marian add to their logits are in it; it gives way in between."""
    model, gave_way = model_of(base_of(family)), []
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    model.requires_grad_(False)
    objective = TextToText(model, tokenizer_of(base_of(family)), max_tokens=32)
    batch = objective.collate(objective.encode(written_rows()).examples)
    loss = TargetLoss(model, lambda: gave_way.append(1))
    assert loss.is_chunked
    with torch.no_grad():
        found, expected = loss(batch), model(**batch)
    assert float(found.losses.mean()) == pytest.approx(float(expected.loss), abs=1e-5)
    predicted = expected.logits.argmax(dim=-1)[batch["labels"] != IGNORED_LABEL]
    assert torch.equal(found.right, predicted == batch["labels"][batch["labels"] != IGNORED_LABEL])
    assert gave_way


def test_a_model_that_does_more_to_its_logits_runs_whole(
    base_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(base_of("tiny-bart"))
    plain = model.forward

    def capped(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.logits = output.logits.tanh()
        return output

    monkeypatch.setattr(model, "forward", capped)
    objective = TextToText(model, tokenizer_of(base_of("tiny-bart")), max_tokens=32)
    batch = objective.collate(objective.encode(written_rows()).examples)
    loss = TargetLoss(model, lambda: None)
    assert not loss.is_chunked
    labels = batch["labels"]
    with torch.no_grad():
        logits = capped(**batch).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        assert float(loss(batch).losses.sum()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("family", ["tiny-t5", "tiny-bart"])
def test_an_adapter_of_a_bfloat16_resident_is_trained_in_single_precision(
    family: str, base_of: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_of(family)
    resident = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    outcome = learn(resident, base, tmp_path, validation_rows=written_rows(), max_steps=12)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < outcome.validation_loss_before


def test_a_kind_of_t5_that_peft_does_not_know_is_trained_in_its_attention() -> None:
    """Its modules are called SelfAttention and EncDecAttention."""
    config = UMT5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = UMT5ForConditionalGeneration(config)
    assert update_targets(LoraMethod(), model, linear_paths(model)) == ["k", "o", "q", "v"]


def test_training_gives_way_in_encoder_and_decoder(base_of: Callable[[str], Path]) -> None:
    for family in FAMILIES:
        model = model_of(base_of(family))
        assert len(layers(model)) == 4, "two of the one and two of the other"


def test_both_texts_are_cut_before_their_closing_token(base_of: Callable[[str], Path]) -> None:
    """At `max_tokens`, and at what the model has positions for; the report counts the rows."""
    base = base_of("tiny-bart")
    model, tokenizer = model_of(base), tokenizer_of(base)
    positions = model.config.max_position_embeddings
    long = "the cat sat on the mat " * positions
    objective = TextToText(model, tokenizer, max_tokens=10**6)
    data = objective.encode([TextToTextRow(input=long, target=long), *written_rows()])
    assert len(data.examples[0].input_ids) == len(data.examples[0].labels) == positions
    assert data.report.truncated_rows == 1
    short = TextToText(model, tokenizer, max_tokens=8).encode([TextToTextRow(input=long, target="the cat")])
    (example,) = short.examples
    assert len(example.input_ids) == 8
    assert example.input_ids[-1] == tokenizer.eos_token_id
    assert example.labels == tuple(tokenizer(text_target="the cat")["input_ids"])


def test_where_an_input_ends_is_part_of_the_datas_digest(base_of: Callable[[str], Path]) -> None:
    """The same tokens, shared out otherwise between input and target, are other data: a checkpoint of the one would
    not go on with the other."""
    base = base_of("tiny-t5")
    objective = TextToText(model_of(base), tokenizer_of(base), max_tokens=64)
    rows = [[TextToTextRow(input=text, target=target)] for text, target in (("the", "cat sat"), ("the cat", "sat"))]
    assert objective.encode(rows[0]).digest != objective.encode(rows[1]).digest


def test_what_does_not_fit_the_task_is_refused_by_name(base_of: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_of("tiny-t5")
    with pytest.raises(InvalidRequest, match="virtual tokens are for text-generation"):
        learn(model_of(base), base, tmp_path, method=PromptTuningMethod(type="prompt-tuning", num_virtual_tokens=4))
    with pytest.raises(InvalidTrainingData, match=r'row 1: a row for text2text-generation is \{"input"'):
        learn(model_of(base), base, tmp_path, rows=[TextRow(text="the sea")])
    with pytest.raises(UnsupportedTask, match="must be told the languages of the texts"):
        learn(model_of(base_of("tiny-mbart")), base_of("tiny-mbart"), tmp_path)
    assert not any(tmp_path.iterdir())
