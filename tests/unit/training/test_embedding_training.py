"""Adapters that make embeddings: the numerics of their training, and what is published."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, Trainer, TrainingArguments

from tandem.adapter_contents import read_contents
from tandem.adapter_import import check_base
from tandem.catalogue import CatalogueEntry
from tandem.errors import InvalidModel, InvalidRequest
from tandem.specs import LoraMethod
from tandem.specs.methods import AdaLoraMethod, AnyMethod, Ia3Method, VeraMethod
from tandem.specs.training_rows import AnchorRow
from tests.unit.training.interrupted import assert_resumed_equals_uninterrupted
from tests.unit.training.plain_recipe import ADAPTER, SEED, arguments, assert_the_same, weights
from tests.unit.training.tiny_encoders import PAIRS, POSITIONS, TOKENIZERS, anchor_rows, learn, tiny_body
from worker.training.loop import TrainingOutcome
from worker.training.objectives.feature_extraction import FeatureExtraction

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter or wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TASK: Final = "feature-extraction"
LEARNING_RATE = 1e-4
"""Longer steps would only magnify what rounding does to gradients that are all but zero. A mistake in what is
computed still shows as a hundred times the tolerance."""
SCALE = 20.0


def base_in(folder: Path, family: str = "bert") -> Path:
    """A saved body without dropout, so that texts can be run in any company."""
    body = tiny_body(family)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"):
        if hasattr(body.config, name):
            setattr(body.config, name, 0.0)
    body.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def mean_embeddings(model: nn.Module, texts: list[str], family: str = "bert") -> Tensor:
    """[texts, hidden], as sentence-transformers makes them with mean pooling and a Normalize module."""
    batch = TOKENIZERS[family](texts, padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in TOKENIZERS[family].model_input_names}
    mask = batch["attention_mask"].unsqueeze(-1).float()
    pooled = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
    return F.normalize(pooled, dim=1)


def ranking_loss(model: nn.Module, rows: list[tuple[str, str, str | None]], family: str = "bert") -> Tensor:
    """MultipleNegativesRankingLoss over one batch, column by column as sentence-transformers computes it."""
    anchors = mean_embeddings(model, [anchor for anchor, _, _ in rows], family)
    candidates = mean_embeddings(model, [positive for _, positive, _ in rows], family)
    if negatives := [negative for _, _, negative in rows if negative is not None]:
        candidates = torch.cat([candidates, mean_embeddings(model, negatives, family)])
    return F.cross_entropy(anchors @ candidates.T * SCALE, torch.arange(len(rows)))


class RankingTrainer(Trainer):
    """transformers' own Trainer over rows of text."""

    family = "bert"

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        return ranking_loss(model, inputs["rows"], self.family)


def train_by_the_recipe(
    base: Path, scratch: Path, config: PeftConfig, family: str, *, batch_size: int, accumulation: int
) -> dict[str, Tensor]:
    """The adapter's weights by PEFT and Trainer alone."""
    model = loaded(base)
    torch.manual_seed(SEED)
    config.task_type = "FEATURE_EXTRACTION"
    wrapped = get_peft_model(model, config)
    settings = arguments(
        TrainingArguments,
        scratch,
        max_steps=4,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=LEARNING_RATE,
    )
    trainer = RankingTrainer(
        wrapped.get_base_model(),
        settings,
        train_dataset=[*PAIRS],
        data_collator=lambda rows: {"rows": rows},
    )
    trainer.family = family
    trainer.train()
    wrapped.save_pretrained(str(scratch / "adapter"))
    return weights(scratch / "adapter")


@pytest.mark.parametrize(
    ("family", "method", "config", "accumulation"),
    [
        ("bert", LoraMethod(), lambda: LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]), 1),
        ("bert", LoraMethod(), lambda: LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]), 2),
        ("roberta", LoraMethod(use_dora=True), lambda: LoraConfig(r=8, lora_alpha=16, use_dora=True), 1),
        (
            "distilbert",
            LoraMethod(target_modules=("q_lin", "lin2")),
            lambda: LoraConfig(r=8, lora_alpha=16, target_modules=["q_lin", "lin2"]),
            1,
        ),
        ("bert", Ia3Method(type="ia3"), IA3Config, 1),
        ("bert", VeraMethod(type="vera", r=16), lambda: VeraConfig(r=16, target_modules=["query", "value"]), 1),
    ],
    ids=["lora", "accumulated", "dora", "distilbert", "ia3", "vera"],
)
def test_the_adapter_is_the_plain_recipes(
    family: str, method: AnyMethod, config: Callable[[], PeftConfig], accumulation: int, tmp_path: Path
) -> None:
    """On the twin, in turns: the weights of PEFT and Trainer with sentence-transformers' loss, which runs anchors,
    positives and negatives one after the other. The resident stays as it was, bit for bit."""
    base = base_in(tmp_path / "base", family)
    resident = loaded(base)
    before = {name: tensor.clone() for name, tensor in resident.state_dict().items()}
    settings: dict[str, Any] = {"batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    learn(
        resident,
        tmp_path / "adapter",
        TASK,
        family=family,
        method=method,
        seed=SEED,
        learning_rate=LEARNING_RATE,
        **settings,
    )
    expected = train_by_the_recipe(
        base, tmp_path / "scratch", config(), family, batch_size=4 // accumulation, accumulation=accumulation
    )
    assert_the_same(weights(tmp_path / "adapter"), expected)
    for name, tensor in before.items():
        assert torch.equal(resident.state_dict()[name], tensor), name


def test_accumulation_is_not_a_larger_batch(tmp_path: Path) -> None:
    """An anchor is told from the positives of its own forward alone, so the first loss of two micro steps is lower
    than that of one batch of both: there are fewer to choose from."""
    base = base_in(tmp_path / "base")
    whole = learn(loaded(base), tmp_path / "whole", TASK, batch_size=8)
    parts = learn(loaded(base), tmp_path / "parts", TASK, batch_size=2, gradient_accumulation_steps=4)
    model, rows = loaded(base), [*PAIRS]
    with torch.no_grad():
        assert whole.first_train_loss == pytest.approx(float(ranking_loss(model, rows)), abs=1e-5)
    assert parts.first_train_loss < whole.first_train_loss - 0.1


def test_an_evaluation_tells_how_many_anchors_find_their_own(tmp_path: Path) -> None:
    """`in_batch_accuracy` is the share of anchors nearer to their own positive than to all others of the batch; the
    published folder, loaded by PEFT, comes to the same."""
    base = base_in(tmp_path / "base")
    rows = anchor_rows()
    outcome = learn(
        loaded(base),
        tmp_path / "adapter",
        TASK,
        validation_rows=rows,
        method=LoraMethod(r=16, alpha=32, target_modules=("query", "key", "value")),
        max_steps=40,
        batch_size=8,
    )
    assert outcome.validation_figures_before is not None
    assert outcome.validation_figures_before["in_batch_accuracy"] < 0.8
    assert outcome.validation_figures_after == {"in_batch_accuracy": 1.0}
    assert set(outcome.history[-2]) >= {"type", "step", "loss", "in_batch_accuracy"}
    model = PeftModel.from_pretrained(loaded(base), tmp_path / "adapter").eval().get_base_model()
    with torch.no_grad():
        assert float(ranking_loss(model, [*PAIRS])) == pytest.approx(outcome.validation_loss_after, abs=1e-5)


def test_the_folder_is_one_that_can_be_imported(tmp_path: Path) -> None:
    """Two files and no config.json: there is no head whose outputs must be told. Its layers are found in the base."""
    base, folder = base_in(tmp_path / "base"), tmp_path / "adapter"
    learn(loaded(base), folder, TASK)
    assert {path.name for path in folder.iterdir()} == {ADAPTER, "adapter_config.json"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("FEATURE_EXTRACTION", None)
    contents = read_contents(folder)
    assert check_base(contents, CatalogueEntry(name="tiny", tasks=(TASK,), folder=base)) == "files and base"
    assert (contents.task, contents.labels, contents.model_type) == (TASK, (), None)
    assert contents.target_modules == ("query", "value")


@pytest.mark.parametrize(
    ("call", "method"),
    [
        pytest.param(2, LoraMethod(dropout=0.2), id="at the start"),
        pytest.param(9, LoraMethod(dropout=0.2), id="in an accumulation"),
        pytest.param(
            9,
            AdaLoraMethod(type="adalora", init_r=6, target_r=2, tfinal=1, target_modules=("query", "dense")),
            id="adalora, on a name that is also the pooler's",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape:peft.utils.warning.PeftWarning")
def test_resumed_equals_uninterrupted(call: int, method: AnyMethod, tmp_path: Path) -> None:
    """Bit for bit, with the base's dropout."""
    exacting: dict[str, Any] = {
        "validation_rows": anchor_rows()[:3],
        "method": method,
        "max_steps": 5,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "eval_steps": 2,
    }

    def train(folder: Path, **options: Any) -> TrainingOutcome:
        return learn(tiny_body(), folder, TASK, **exacting, **options)

    assert_resumed_equals_uninterrupted(train, tmp_path, call=call)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_texts_are_pooled_as_the_model_is_served(pooling: str, tmp_path: Path) -> None:
    """By the file that sentence-transformers saves beside the model."""
    base = base_in(tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
    model = loaded(base)
    objective = FeatureExtraction(model, TOKENIZERS["bert"], POSITIONS)
    batch = objective.collate(objective.encode(anchor_rows()[:2]).examples)
    hidden = [
        model(**TOKENIZERS["bert"](text, return_tensors="pt")).last_hidden_state[0]
        for row in PAIRS[:2]
        for text in row
        if text is not None
    ]
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "cls": lambda tokens: tokens[0],
        "mean": lambda tokens: tokens.mean(0),
        "max": lambda tokens: tokens.amax(0),
    }
    vectors = F.normalize(torch.stack([ways[pooling](tokens) for tokens in hidden]), dim=1)
    anchors, candidates = vectors[[0, 3]], vectors[[1, 4, 2]]
    expected = F.cross_entropy(anchors @ candidates.T * SCALE, torch.arange(2))
    found = objective.loss(model, lambda: None, lambda ids: {"input_ids": ids})(batch, 2.0)
    torch.testing.assert_close(found.loss, expected, rtol=0.0, atol=1e-5)


def test_a_pooling_that_is_not_served_is_not_trained(tmp_path: Path) -> None:
    base = base_in(tmp_path / "base")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    with pytest.raises(InvalidModel, match="asks for the pooling lasttoken"):
        learn(loaded(base), tmp_path / "adapter", TASK)


def test_the_pooler_gets_no_adapter(tmp_path: Path) -> None:
    """BERT's `dense` is also that of its pooler, which embeddings do not use: nothing would be learned there."""
    learn(tiny_body(), tmp_path, TASK, method=LoraMethod(target_modules=("dense",)))
    assert not [name for name in load_file(tmp_path / ADAPTER) if "pooler" in name]
    with pytest.raises(InvalidRequest, match=r"no linear layer called pooler\.dense"):
        learn(tiny_body(), tmp_path, TASK, method=LoraMethod(target_modules=("pooler.dense",)))


def test_a_long_text_is_cut_and_counted() -> None:
    """Each of a row's texts by itself; all of them together may be longer."""
    objective = FeatureExtraction(tiny_body(), TOKENIZERS["bert"], 1024)
    rows = [AnchorRow(anchor="rain " * 200, positive="the sea"), AnchorRow(anchor="rain", positive="calm")]
    data = objective.encode([*rows])
    assert data.examples[0].lengths == (POSITIONS, 4)
    assert data.examples[1].lengths == (3, 3)
    assert (data.report.truncated_rows, data.report.answer_tokens) == (1, 2)
