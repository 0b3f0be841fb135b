"""The golden rule of numerics for adapters with heads: as by transformers' own examples and PEFT alone."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from tandem.specs import LoraMethod
from tandem.specs.finetune import FineTuneTask
from tandem.specs.methods import AnyMethod, Ia3Method
from tests.unit.training.plain_recipe import ADAPTER, SEED, SeedsTheFirstStep, arguments, assert_the_same, weights
from tests.unit.training.tiny_encoders import (
    QUESTIONS,
    ROWS,
    SENTENCES,
    TEXTS,
    TOKENIZERS,
    learn,
    tiny_body,
)

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter or wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FAMILIES = ("bert", "roberta", "distilbert")
TASKS: tuple[FineTuneTask, ...] = ("text-classification", "token-classification", "question-answering")
CLASSES: dict[FineTuneTask, Any] = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
}
LABELS: dict[FineTuneTask, list[str]] = {
    "text-classification": ["animals", "money", "weather"],
    "token-classification": ["B-LOC", "B-PER", "I-PER", "O"],
    "question-answering": [],
}


def headed(task: FineTuneTask, base: Path) -> PreTrainedModel:
    """The model with a new head, as transformers makes it out of a saved body."""
    names = dict(enumerate(LABELS[task]))
    labels = {"id2label": names, "label2id": {name: number for number, name in names.items()}} if names else {}
    model: PreTrainedModel = CLASSES[task].from_pretrained(base, **labels)
    return model


# The recipes of transformers' own examples (run_glue.py, run_ner.py, run_qa.py), without anything of Tandem.


def recipe_rows(task: FineTuneTask, family: str) -> Iterator[dict[str, Any]]:
    tokenizer = TOKENIZERS[family]
    if task == "text-classification":
        for text, label in TEXTS.items():
            yield {**tokenizer(text), "labels": LABELS[task].index(label)}
    elif task == "token-classification":
        for sentence, tags in SENTENCES:
            encoding = tokenizer(sentence)
            numbers, seen = [], set()
            for token in range(len(encoding["input_ids"])):
                span = encoding.token_to_chars(token)
                is_word = span is not None and span.end > span.start  # not a space alone
                word = sentence[: span.end].count(" ") if is_word else None
                numbers.append(-100 if word is None or word in seen else LABELS[task].index(tags.split()[word]))
                seen.add(word)
            yield {**encoding, "labels": numbers}
    else:
        for asked, context, answer in QUESTIONS:
            encoding = tokenizer(asked, context)
            start = encoding.char_to_token(context.index(answer), sequence_index=1) if answer else 0
            end = encoding.char_to_token(context.index(answer) + len(answer) - 1, sequence_index=1) if answer else 0
            yield {**encoding, "start_positions": start, "end_positions": end}


def recipe_collator(family: str) -> Any:
    tokenizer = TOKENIZERS[family]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        labels = {name: [row[name] for row in rows] for name in rows[0] if name not in tokenizer.model_input_names}
        inputs = [{name: row[name] for name in tokenizer.model_input_names} for row in rows]
        batch = dict(tokenizer.pad(inputs, return_tensors="pt"))
        tokens = batch["input_ids"].shape[1]
        for name, values in labels.items():
            if isinstance(values[0], list):
                values = [[*value, *[-100] * (tokens - len(value))] for value in values]
            batch[name] = torch.tensor(values)
        return batch

    return collate


def batch_size(task: FineTuneTask) -> int:
    return 1 if task == "question-answering" else 3


def train_by_the_recipe(
    task: FineTuneTask, family: str, base: Path, scratch: Path, config: PeftConfig | None = None
) -> dict[str, Tensor]:
    """The adapter's weights after `Trainer` and `get_peft_model` alone have trained it: a LoRA unless `config` says.

    Rows of question-answering come one by one, since transformers' loss of those depends on the padding.
    """
    torch.manual_seed(SEED)
    task_types = {"text-classification": "SEQ_CLS", "token-classification": "TOKEN_CLS"}
    targets = ["q_lin", "v_lin"] if family == "distilbert" else ["query", "value"]
    config = config or LoraConfig(r=8, lora_alpha=16, target_modules=targets)
    config.task_type = task_types.get(task, "QUESTION_ANS")
    model = get_peft_model(headed(task, base), config)
    settings = arguments(
        TrainingArguments,
        scratch,
        num_train_epochs=1,
        per_device_train_batch_size=batch_size(task),
        learning_rate=1e-2,
    )
    rows = [*recipe_rows(task, family)] * 2
    collate, callbacks = recipe_collator(family), [SeedsTheFirstStep()]
    # The model under PEFT's wrapper: that of 0.21 drops the token types of questions.
    bare = model.get_base_model()
    Trainer(bare, settings, train_dataset=rows, data_collator=collate, callbacks=callbacks).train()
    model.save_pretrained(scratch / "adapter")
    return weights(scratch / "adapter")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_the_adapter_is_the_plain_recipes(task: FineTuneTask, family: str, tmp_path: Path) -> None:
    """On the twin of a resident body, in turns: the weights of transformers' own examples on a model of its own, with
    the base's dropout, the same seed, and the head drawn anew. The resident is bit for bit what it was."""
    body = tiny_body(family)
    body.save_pretrained(tmp_path / "base")
    resident = AutoModel.from_pretrained(tmp_path / "base").eval()
    targets = ("q_lin", "v_lin") if family == "distilbert" else None
    learn(
        resident,
        tmp_path / "adapter",
        task,
        family=family,
        rows=ROWS[task]() * 2,
        batch_size=batch_size(task),
        method=LoraMethod(target_modules=targets),
        seed=SEED,
        max_steps=None,
    )
    expected = train_by_the_recipe(task, family, tmp_path / "base", tmp_path / "scratch")
    assert_the_same(weights(tmp_path / "adapter"), expected)
    for name, tensor in body.state_dict().items():
        assert torch.equal(resident.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (Ia3Method(type="ia3"), lambda: IA3Config()),
        (LoraMethod(use_rslora=True), lambda: LoraConfig(lora_alpha=16, use_rslora=True)),
        (LoraMethod(use_dora=True), lambda: LoraConfig(lora_alpha=16, use_dora=True)),
    ],
    ids=["ia3", "rslora", "dora"],
)
def test_other_methods_are_the_plain_recipes_too(
    method: AnyMethod, config: Callable[[], PeftConfig], tmp_path: Path
) -> None:
    """Beside a new head, which is trained and saved whole."""
    tiny_body().save_pretrained(tmp_path / "base")
    resident = AutoModel.from_pretrained(tmp_path / "base").eval()
    rows = {"rows": ROWS["text-classification"]() * 2, "max_steps": None}
    learn(resident, tmp_path / "adapter", method=method, seed=SEED, **rows)
    expected = train_by_the_recipe("text-classification", "bert", tmp_path / "base", tmp_path / "scratch", config())
    assert_the_same(weights(tmp_path / "adapter"), expected)


@pytest.mark.parametrize(
    ("task", "method"),
    [
        *((task, LoraMethod()) for task in TASKS),
        *((TASKS[0], m) for m in (Ia3Method(type="ia3"), LoraMethod(use_dora=True))),
    ],
)
def test_the_folder_loads_onto_the_headed_base(task: FineTuneTask, method: AnyMethod, tmp_path: Path) -> None:
    """By PEFT, onto what transformers makes of the base; `config.json` says which class and which labels. The loaded
    model predicts what training had it predict."""
    body, rows = tiny_body(), ROWS[task]()
    body.save_pretrained(tmp_path / "base")
    outcome = learn(body, tmp_path / "adapter", task, rows=rows, validation_rows=rows, method=method, max_steps=30)
    folder = tmp_path / "adapter"
    assert {path.name for path in folder.iterdir()} == {ADAPTER, "adapter_config.json", "config.json"}
    config = json.loads((folder / "config.json").read_text())
    model = PeftModel.from_pretrained(headed(task, tmp_path / "base"), folder).eval().get_base_model()
    assert config["architectures"] == [type(model).__name__]
    if task != "question-answering":
        assert list(config["id2label"].values()) == LABELS[task]
        assert config["label2id"] == {label: number for number, label in enumerate(LABELS[task])}
    losses = []
    with torch.no_grad():
        for row in recipe_rows(task, "bert"):
            batch = recipe_collator("bert")([row])
            losses.append((float(model(**batch).loss), int((batch.get("labels", torch.zeros(2)) != -100).sum())))
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert mean == pytest.approx(outcome.validation_loss_after, abs=1e-5)
