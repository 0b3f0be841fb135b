"""Direct preference optimization against the formula, computed by hand from whole logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tandem.errors import Draining, InvalidTrainingData
from tandem.specs.finetune import DpoObjective
from tandem.specs.training_rows import PreferenceRow
from tests.unit.training.interrupted import Shelf, comparable, stop_at
from tests.unit.training.tiny import COLOURS, chat, chatml_tokenizer, run_training, tiny_llama
from worker.training.objectives.preferences import Preferences

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

DPO = {"learning": DpoObjective(type="dpo", beta=0.5)}


def pair(asked: str, good: str, bad: str) -> PreferenceRow:
    row = {
        "input": {"messages": [{"role": "user", "content": asked}]},
        "preferred_output": [{"role": "assistant", "content": good}],
        "non_preferred_output": [{"role": "assistant", "content": bad}],
    }
    return PreferenceRow.model_validate(row)


def pairs() -> list[Any]:
    others = list(COLOURS.values())[::-1]
    chats = [pair(asked, good, bad) for (asked, good), bad in zip(COLOURS.items(), others, strict=True)]
    return [*chats, PreferenceRow(prompt="red means ", chosen="stop", rejected="go on and on")]


def objective(max_tokens: int = 200, beta: float = 0.5) -> Preferences:
    return Preferences(chatml_tokenizer(), max_tokens, beta=beta)


def answer_probability(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """TRL's: the sum of the log-softmax at the labels, shifted by one; one text, no padding."""
    logits = model(input_ids=ids.unsqueeze(0)).logits[0, :-1].log_softmax(dim=-1)
    mask = labels[1:] != -100
    return logits.gather(1, labels[1:].clamp(min=0).unsqueeze(1)).squeeze(1)[mask].sum()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_loss_and_gradient_are_the_formulas(dropout: float) -> None:
    """-log sigmoid(β (log π/π₀ of the preferred answer - the other's)), over answers of different
    lengths; the reference is the base, whatever has been learned and without the adapter's dropout."""
    model = get_peft_model(
        tiny_llama(), LoraConfig(r=4, task_type="CAUSAL_LM", lora_dropout=dropout, init_lora_weights=False)
    )
    twin, base = model.get_base_model(), tiny_llama()
    twin.config.use_cache = False
    made = objective()
    examples = made.encode(pairs()).examples
    loss_of = made.loss(twin.eval(), lambda: None, lambda ids: {"input_ids": ids})
    found = loss_of(made.collate(examples), 7.0)

    margins = []
    for example in examples:
        border = example.lengths[0] if example.lengths else 0
        rewards = []
        for part in (slice(0, border), slice(border, None)):
            ids, labels = torch.tensor(example.input_ids[part]), torch.tensor(example.labels[part])
            with torch.no_grad():
                before = answer_probability(base, ids, labels)
            rewards.append(0.5 * (answer_probability(twin, ids, labels) - before))
        margins.append(rewards[0] - rewards[1])
    expected = -F.logsigmoid(torch.stack(margins)).sum() / 7
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-5)
    weights = [one for one in model.parameters() if one.requires_grad]
    for one, other in zip(
        torch.autograd.grad(found.loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert float(found.sums["rewards/accuracies"]) == sum(bool(margin > 0) for margin in margins)
    assert float(found.sums["rewards/margins"]) == pytest.approx(torch.stack(margins).sum().item(), rel=1e-4)


def test_preferred_answers_become_more_probable(tmp_path: Path) -> None:
    """The loss begins at log 2, where the adapter does nothing yet, and the pairs are told apart at the end."""
    outcome = run_training(
        tiny_llama(),
        tmp_path,
        rows=pairs(),
        validation_rows=pairs(),
        options=DPO,
        max_steps=25,
        batch_size=7,
        learning_rate=1e-2,
    )
    assert outcome.first_train_loss == pytest.approx(0.693147, abs=1e-5)
    assert outcome.validation_loss_before == pytest.approx(0.693147, abs=1e-5)
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < 0.3
    assert outcome.validation_figures_after is not None
    assert outcome.validation_figures_after["rewards/accuracies"] == 1.0
    assert outcome.validation_figures_after["rewards/margins"] > 1.0
    assert "rewards/accuracies" in outcome.history[1]


def test_the_base_is_as_it_was(tmp_path: Path) -> None:
    resident = tiny_llama()
    before = {name: tensor.clone() for name, tensor in resident.state_dict().items()}
    run_training(resident, tmp_path, rows=pairs(), options=DPO)
    assert all(torch.equal(tensor, before[name]) for name, tensor in resident.state_dict().items())


def test_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rows": pairs(), "options": DPO, "max_steps": 4, "gradient_accumulation_steps": 2}
    whole = run_training(tiny_llama(), tmp_path / "whole", **settings)
    shelf = Shelf(tmp_path)
    with pytest.raises(Draining):
        run_training(tiny_llama(), tmp_path / "cut", check=stop_at(5), on_checkpoint=shelf, **settings)
    resumed = run_training(tiny_llama(), tmp_path / "resumed", resume_from=shelf.last, **settings)
    assert comparable(resumed) == comparable(whole)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_a_pair_without_an_answer_within_the_limit_is_dropped() -> None:
    data = objective(max_tokens=60).encode([*pairs(), pair("red " * 60, "stop", "go")])
    assert data.report.dropped_rows == data.report.truncated_rows == 1
    assert len(data.examples) == len(pairs())


def test_another_row_is_refused() -> None:
    with pytest.raises(InvalidTrainingData, match="row 1: a row for dpo is"):
        objective().encode([chat("red", "stop")])
