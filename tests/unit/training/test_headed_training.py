"""Adapters with heads: the numerics of their training, and what is published."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from tandem.errors import Draining, InvalidRequest, InvalidTrainingData, UnsupportedTask
from tandem.specs import LoraMethod
from tandem.specs.finetune import FineTuneTask
from tandem.specs.methods import AnyMethod, Ia3Method
from tandem.specs.training_rows import TextClassificationRow
from tests.unit.training.interrupted import Shelf, comparable, stop_at
from tests.unit.training.tiny_encoders import (
    QUESTIONS,
    ROWS,
    SENTENCES,
    TEXTS,
    TOKENIZERS,
    body_without_pooler,
    learn,
    text_rows,
    tiny_body,
)

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter or wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ADAPTER = "adapter_model.safetensors"
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
SEED = 3


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / ADAPTER)


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


class SeedsTheFirstStep(TrainerCallback):
    """Trainer seeds torch, and then its DataLoader draws a number before the first dropout does. Tandem's training
    has a random state of its own, which the DataLoader does not reach."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step == 0:
            torch.manual_seed(SEED)


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
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size(task),
        learning_rate=1e-2,
        seed=SEED,
        data_seed=SEED,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
    )
    rows = [*recipe_rows(task, family)] * 2
    collate, callbacks = recipe_collator(family), [SeedsTheFirstStep()]
    # The model under PEFT's wrapper: that of 0.21 drops the token types of questions.
    bare = model.get_base_model()
    Trainer(bare, arguments, train_dataset=rows, data_collator=collate, callbacks=callbacks).train()
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
    found = weights(tmp_path / "adapter")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=1e-6, msg=name)
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
    found = weights(tmp_path / "adapter")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=1e-6, msg=name)


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


@pytest.mark.parametrize("task", TASKS)
def test_accumulated_micro_steps_are_one_mean(task: FineTuneTask, tmp_path: Path) -> None:
    """Over rows or labels, however unevenly they lie in the micro steps: every step's loss is as in one batch of them
    all."""
    body = tiny_body()
    body.config.hidden_dropout_prob = body.config.attention_probs_dropout_prob = 0.0
    rows = ROWS[task]()[:4]
    whole = learn(body, tmp_path / "whole", task, rows=rows, batch_size=4)
    parts = learn(body, tmp_path / "parts", task, rows=rows, batch_size=1, gradient_accumulation_steps=4)
    losses = [event["loss"] for event in whole.history]
    assert [event["loss"] for event in parts.history] == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("task", "call"),
    [
        pytest.param("text-classification", 2, id="text-classification at the start"),
        pytest.param("text-classification", 9, id="text-classification in an accumulation"),
        pytest.param("token-classification", 15, id="token-classification in an evaluation"),
        pytest.param("question-answering", 9, id="question-answering in an accumulation"),
    ],
)
def test_resumed_equals_uninterrupted(task: FineTuneTask, call: int, tmp_path: Path) -> None:
    """The head, its optimizer state and the metrics are part of the checkpoint, bit for bit."""
    exacting: dict[str, Any] = {
        "validation_rows": ROWS[task]()[:3],
        "method": LoraMethod(dropout=0.2),
        "max_steps": 5,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "eval_steps": 2,
    }
    whole = learn(tiny_body(), tmp_path / "whole", task, **exacting)
    shelf = Shelf(tmp_path / "shelf")
    with pytest.raises(Draining):
        learn(tiny_body(), tmp_path / "part", task, check=stop_at(call), on_checkpoint=shelf, **exacting)
    resumed = learn(tiny_body(), tmp_path / "resumed", task, resume_from=shelf.last, **exacting)
    assert comparable(resumed) == comparable(whole)
    for name in (ADAPTER, "adapter_config.json", "config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_checkpoint_of_other_labels_is_refused(tmp_path: Path) -> None:
    """The tokens are the same, and so are the numbers of the classes; what they mean is not."""
    rows = [TextClassificationRow(text=text, label=label) for text, label in (("rain", "a"), ("sea", "b"))]
    renamed = [row.model_copy(update={"label": {"a": "c", "b": "d"}[row.label]}) for row in rows]
    shelf = Shelf(tmp_path / "shelf")
    learn(tiny_body(), tmp_path / "first", rows=[*rows], on_checkpoint=shelf, save_steps=2)
    with pytest.raises(InvalidRequest, match="a training with other rows"):
        learn(tiny_body(), tmp_path / "second", rows=[*renamed], resume_from=shelf.last, save_steps=2)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("text-classification", {"accuracy"}),
        ("token-classification", {"accuracy", "precision", "recall", "f1"}),
        ("question-answering", {"exact_match", "f1"}),
    ],
)
def test_rows_are_learned_by_heart_and_the_figures_say_so(
    task: FineTuneTask, names: set[str], tmp_path: Path
) -> None:
    """In the events, and as the first and the last evaluation's in the outcome."""
    body, rows = tiny_body(), ROWS[task]()
    events: list[dict[str, Any]] = []
    targets = ("query", "key", "value", "dense")
    outcome = learn(
        body,
        tmp_path,
        task,
        rows=rows,
        validation_rows=rows,
        on_event=events.append,
        method=LoraMethod(r=16, alpha=32, target_modules=targets),
        max_steps=60,
        batch_size=9,
        learning_rate=2e-2,
    )
    first, last = (event for event in events if event["type"] == "evaluation")
    assert json.loads(json.dumps(events)) == events
    assert outcome.validation_figures_before == {name: first[name] for name in names}
    assert outcome.validation_figures_after == {name: last[name] for name in names}
    assert set(last) == {"type", "step", "loss", *names}
    assert all(last[name] == 1.0 for name in names), last
    assert min(first[name] for name in names) < 0.8, first


def test_the_head_of_a_bfloat16_body_is_trained_in_single_precision(tmp_path: Path) -> None:
    """As the low-rank matrices are: steps of 1e-4 would be lost in a bfloat16 weight's rounding."""
    rows = text_rows()
    body = tiny_body(dtype=torch.bfloat16)
    outcome = learn(body, tmp_path, rows=rows, validation_rows=rows, max_steps=30)
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}
    assert body.dtype == torch.bfloat16
    assert outcome.validation_loss_before is not None
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < 0.8 * outcome.validation_loss_before


def test_targets_are_the_bodys_alone(tmp_path: Path) -> None:
    """`dense` names layers of RoBERTa's body and one of its head: the head is trained whole, and only that."""
    learn(tiny_body("roberta"), tmp_path, family="roberta", method=LoraMethod(target_modules=("dense",)))
    names = {name.removeprefix("base_model.model.") for name in weights(tmp_path)}
    head = {name for name in names if name.startswith("classifier.")}
    assert head == {f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")}
    assert all(name.startswith("roberta.encoder.layer.") and ".lora_" in name for name in names - head)
    with pytest.raises(InvalidRequest, match="no linear layer called out_proj; it has dense, key, query, value"):
        learn(tiny_body("roberta"), tmp_path, family="roberta", method=LoraMethod(target_modules=("out_proj",)))


def test_a_head_of_several_parts_is_trained_whole(tmp_path: Path) -> None:
    """DistilBERT's classifier has a layer before it."""
    learn(tiny_body("distilbert"), tmp_path, family="distilbert")
    names = {name.removeprefix("base_model.model.") for name in weights(tmp_path) if ".lora_" not in name}
    assert names == {f"{layer}.{part}" for layer in ("pre_classifier", "classifier") for part in ("weight", "bias")}


def test_a_body_without_what_the_class_needs_is_refused(tmp_path: Path) -> None:
    """BERT classifies what its pooler makes; a body that has none cannot be given a random one in silence."""
    with pytest.raises(UnsupportedTask, match=r"no parameter pooler\.dense\.weight"):
        learn(body_without_pooler(), tmp_path)
    learn(body_without_pooler(), tmp_path, "token-classification")


def test_one_label_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    rows = [TextClassificationRow(text="rain", label="weather")] * 3
    with pytest.raises(InvalidTrainingData, match="all rows have the label 'weather'"):
        learn(tiny_body(), tmp_path, rows=[*rows])
