"""Adapters of encoder-decoders: the numerics of their training, what is published, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from tandem.errors import InvalidRequest, InvalidTrainingData, UnsupportedTask
from tandem.specs.methods import (
    AnyMethod,
    LoraMethod,
    OftMethod,
    PromptTuningMethod,
)
from tandem.specs.training_rows import TextRow, TextToTextRow
from tests.unit.training.interrupted import assert_resumed_equals_uninterrupted
from tests.unit.training.plain_recipe import PEFT_WARNINGS, weights
from tests.unit.training.tiny_encoder_decoders import learn, model_of, tokenizer_of, written_rows
from worker.training.loop import TrainingOutcome
from worker.training.loss import IGNORED_LABEL
from worker.training.objectives.text_to_text import TextToText
from worker.training.target_loss import TargetLoss
from worker.training.targets import linear_paths, update_targets
from worker.training.twin import layers

pytestmark = PEFT_WARNINGS

FAMILIES = ("tiny-t5", "tiny-bart", "tiny-marian")


@pytest.mark.parametrize(
    ("method", "call"),
    [
        pytest.param(LoraMethod(dropout=0.2), 8, id="lora in an accumulation"),
        pytest.param(OftMethod(type="oft", oft_block_size=8), 13, id="oft in an evaluation"),
    ],
)
def test_resumed_equals_uninterrupted(
    method: AnyMethod, call: int, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_folder("tiny-t5")
    exacting: dict[str, Any] = {
        "method": method,
        "validation_rows": written_rows()[2:],
        "max_steps": 5,
        "gradient_accumulation_steps": 2,
        "eval_steps": 3,
    }

    def train(folder: Path, **options: Any) -> TrainingOutcome:
        return learn(model_of(base), base, folder, **exacting, **options)

    assert_resumed_equals_uninterrupted(train, tmp_path, call=call)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_in_chunks_is_the_models_own(family: str, tiny_folder: Callable[[str], Path]) -> None:
    """T5's scaled states and the bias that BART and Marian add to their logits are in it; it gives way in between."""
    model, gave_way = model_of(tiny_folder(family)), []
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    model.requires_grad_(False)
    objective = TextToText(model, tokenizer_of(tiny_folder(family)), max_tokens=32)
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
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(tiny_folder("tiny-bart"))
    plain = model.forward

    def capped(**inputs: Any) -> Any:
        output = plain(**inputs)
        output.logits = output.logits.tanh()
        return output

    monkeypatch.setattr(model, "forward", capped)
    objective = TextToText(model, tokenizer_of(tiny_folder("tiny-bart")), max_tokens=32)
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
    family: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_folder(family)
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


def test_training_gives_way_in_encoder_and_decoder(tiny_folder: Callable[[str], Path]) -> None:
    for family in FAMILIES:
        model = model_of(tiny_folder(family))
        assert len(layers(model)) == 4, "two of the one and two of the other"


def test_both_texts_are_cut_before_their_closing_token(tiny_folder: Callable[[str], Path]) -> None:
    """At `max_tokens`, and at what the model has positions for; the report counts the rows."""
    base = tiny_folder("tiny-bart")
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


def test_where_an_input_ends_is_part_of_the_datas_digest(tiny_folder: Callable[[str], Path]) -> None:
    """The same tokens, shared out otherwise between input and target, are other data: a checkpoint of the one would
    not go on with the other."""
    base = tiny_folder("tiny-t5")
    objective = TextToText(model_of(base), tokenizer_of(base), max_tokens=64)
    rows = [[TextToTextRow(input=text, target=target)] for text, target in (("the", "cat sat"), ("the cat", "sat"))]
    assert objective.encode(rows[0]).digest != objective.encode(rows[1]).digest


def test_what_does_not_fit_the_task_is_refused_by_name(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = tiny_folder("tiny-t5")
    with pytest.raises(InvalidRequest, match="virtual tokens are for text-generation"):
        learn(model_of(base), base, tmp_path, method=PromptTuningMethod(type="prompt-tuning", num_virtual_tokens=4))
    with pytest.raises(InvalidTrainingData, match=r'row 1: a row for text2text-generation is \{"input"'):
        learn(model_of(base), base, tmp_path, rows=[TextRow(text="the sea")])
    with pytest.raises(UnsupportedTask, match="must be told the languages of the texts"):
        learn(model_of(tiny_folder("tiny-mbart")), tiny_folder("tiny-mbart"), tmp_path)
    assert not any(tmp_path.iterdir())
