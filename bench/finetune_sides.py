"""One training by three programs: Tandem, transformers' Trainer with PEFT, and a loop of one's own with PEFT."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from bench.decoder import load_without_thread
from bench.finetune_recipes import Recipe
from bench.rounds import Work
from tandem.catalogue import Catalogue
from tandem.settings import WorkerSettings
from tandem.specs import TrainingRow
from tandem.specs.finetune import RESIDENT_TASK
from worker.resident_model import ResidentModel
from worker.training.loop import train
from worker.training.objectives import objective_for
from worker.training.turns import Turns

Batch = dict[str, torch.Tensor]
Encoded = list[dict[str, Any]]


@dataclass(slots=True)
class Steps:
    """When each optimizer step was over, and the real tokens until then: padding is no work that anyone wants."""

    ends: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def work(self) -> Work:
        """Of all steps but the first, in which memory is allocated and kernels are chosen."""
        return Work(self.tokens[-1] - self.tokens[0], self.ends[-1] - self.ends[0])


class Sides:
    """The programs that follow one recipe, each with its own model over the same files."""

    def __init__(self, recipe: Recipe, rows: Sequence[TrainingRow]) -> None:
        """`rows`: all that are learned, which say what the classes are."""
        self.recipe = recipe
        settings = WorkerSettings.read()
        self._folder = settings.models_dir / recipe.model
        resident = _load(recipe, settings)
        assert resident.tokenizer is not None
        self._model, self._tokenizer = resident.model, resident.tokenizer
        limit = recipe.hyperparameters.max_tokens
        self._objective = objective_for(recipe.task, self._model, self._tokenizer, limit, rows)

    def encoded(self, rows: Sequence[TrainingRow]) -> Encoded:
        """What the library's own collators take: the same tokens and labels for every side."""
        one_label = self._objective.head is not None
        return [
            {
                "input_ids": list(example.input_ids),
                "attention_mask": [1] * len(example.input_ids),
                "labels": example.labels[0] if one_label else list(example.labels),
            }
            for example in self._objective.encode(rows).examples
        ]

    def collate(self, examples: Encoded) -> Batch:
        kind = DataCollatorForSeq2Seq if self._objective.head is None else DataCollatorWithPadding
        return dict(kind(self._tokenizer)(examples))

    def base(self) -> PreTrainedModel:
        """The model without an adapter, as the library loads it; a head has random weights."""
        if self._objective.head is None:
            model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=self.recipe.dtype)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(
                self._folder, dtype=self.recipe.dtype, num_labels=len(self._objective.head.labels)
            )
        return cast("PreTrainedModel", model)

    def tandem(self, rows: Sequence[TrainingRow], folder: Path, **changes: Any) -> Work:
        """As the worker's runner does it, alone on the device. `changes` are hyperparameters."""
        steps = Steps()

        def on_event(event: dict[str, Any]) -> None:
            if event["type"] == "progress":
                steps.ends.append(time.perf_counter())

        outcome = train(
            self._model,
            self._tokenizer,
            base_name=self.recipe.model,
            training_rows=rows,
            validation_rows=None,
            method=self.recipe.method,
            hyperparameters=self.recipe.hyperparameters.model_copy(update={"logging_steps": 1, **changes}),
            turns=Turns(),
            on_event=on_event,
            check=lambda: None,
            folder=folder,
            task=self.recipe.task,
        )
        steps.tokens = [event["tokens"] for event in outcome.history if event["type"] == "metrics"]
        return steps.work()

    def trainer(self, rows: Sequence[TrainingRow], folder: Path) -> Work:
        """As PEFT's documentation has it."""
        steps = Steps()
        with tempfile.TemporaryDirectory() as scratch:
            trainer = self._trainer(rows, Path(scratch), steps)
            trainer.train()
        cast("PeftModel", trainer.model).save_pretrained(str(folder))
        return steps.work()

    def loop(self, rows: Sequence[TrainingRow]) -> Work:
        """One epoch of the same batches in a bare loop: forward, backward, clip, AdamW, schedule."""
        settings, steps = self.recipe.hyperparameters, Steps()
        with tempfile.TemporaryDirectory() as scratch:
            prepared = self._trainer(rows, Path(scratch), steps)
            batches = list(prepared.get_train_dataloader())
        model = cast("PeftModel", prepared.model).train()
        trained = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        schedule = get_linear_schedule_with_warmup(optimizer, settings.warmup_steps, len(batches))
        for batch in batches:
            torch.autograd.backward(model(**batch).loss)
            torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            steps.ends.append(time.perf_counter())
        return steps.work()

    def _trainer(self, rows: Sequence[TrainingRow], scratch: Path, steps: Steps) -> Trainer:
        """Notes in `steps` what is collated and which steps are over."""
        settings, method = self.recipe.hyperparameters, self.recipe.method
        torch.manual_seed(settings.seed)
        config = LoraConfig(
            task_type=self._objective.task_type,
            r=method.r,
            lora_alpha=cast("int", method.alpha),
            lora_dropout=method.dropout,
            target_modules=None if method.target_modules is None else list(method.target_modules),
        )
        arguments = TrainingArguments(
            output_dir=str(scratch),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.lr_scheduler_type,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            data_seed=settings.seed,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            label_names=["labels"],
        )

        def collate(examples: Encoded) -> Batch:
            batch = self.collate(examples)
            steps.tokens.append(int(batch["attention_mask"].sum()) + (steps.tokens[-1] if steps.tokens else 0))
            return batch

        trainer = Trainer(
            cast("Any", get_peft_model(self.base(), config)),
            arguments,
            train_dataset=cast("Any", self.encoded(rows)),  # a list has what a Dataset needs: items and a length
            data_collator=collate,
            callbacks=[_NotesSteps(steps)],
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


class _NotesSteps(TrainerCallback):
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._steps.ends.append(time.perf_counter())


def _load(recipe: Recipe, settings: WorkerSettings) -> ResidentModel:
    """As a worker holds it, with nothing that is served."""
    entry = Catalogue.load(settings).get(recipe.model)
    dtype = str(recipe.dtype).removeprefix("torch.")
    return load_without_thread(settings, entry.model_copy(update={"dtype": dtype}), RESIDENT_TASK[recipe.task])
