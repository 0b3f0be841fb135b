"""Fine-tuning: what is trained on what, how, and what is kept of it."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from tandem.specs.base import MAX_NEW_TOKENS, SUFFIX_PATTERN, FileId, Name, Scheduling, Spec
from tandem.specs.methods import AnyMethod, LoraMethod, Method, OftMethod, PromptLearningMethod
from tandem.specs.tasks import Task

MAX_EPOCHS = 100
"""Passes over the training data."""
MAX_TRAINING_STEPS = 10_000_000
"""Optimizer steps of one job: a bound on a typing mistake, not on work."""
MIN_ROW_TOKENS = 8
"""Tokens of a row that a training must have room for: fewer are a mistake in the limit."""
MAX_PATIENCE = 1000
"""Evaluations without an improvement: more never end a training early."""
MAX_PUBLISHED_CHECKPOINTS = 1000
"""Checkpoints of one training that are published: each is an adapter of its own."""

FineTuneTask = Literal[
    "text-generation",
    "text-classification",
    "token-classification",
    "question-answering",
    "text2text-generation",
    "feature-extraction",
]
RESIDENT_TASK: dict[FineTuneTask, Task] = {
    "text-generation": "text-generation",
    "text-classification": "feature-extraction",
    "token-classification": "feature-extraction",
    "question-answering": "feature-extraction",
    "text2text-generation": "text2text-generation",
    "feature-extraction": "feature-extraction",
}
"""Task that is learned → task whose resident model it is learned on. The encoder's is the body without a head: one
copy of it makes embeddings and serves every adapter, most of which bring a head of their own."""
HEADED_TASKS: frozenset[FineTuneTask] = frozenset(
    {"text-classification", "token-classification", "question-answering"}
)
"""Tasks whose adapters bring a head of their own."""
TEXT_TO_TEXT: tuple[Task, ...] = ("text2text-generation", "summarization", "translation")
"""An encoder-decoder's tasks. Its adapters are trained for the first and do all of them, as their bases do: the tasks
differ only in what is put before a text."""


EMBEDDING: tuple[Task, ...] = ("feature-extraction", "sentence-similarity")
"""What an adapter that is trained for the first does: the second compares the embeddings that the first makes."""
ENCODER_ADAPTER_TASKS: frozenset[FineTuneTask] = HEADED_TASKS | {"feature-extraction"}
"""Tasks whose adapters are served in the encoders' mixed batch, which takes updates of linear layers alone."""


def base_does(task: FineTuneTask, tasks: Sequence[Task]) -> bool:
    """Whether a model that does `tasks`, by the catalogue, is one on which `task` is learned."""
    needed = TEXT_TO_TEXT if task == "text2text-generation" else (RESIDENT_TASK[task],)
    return any(one in tasks for one in needed)


class Hyperparameters(Spec):
    """How long and how fast to train. Names follow transformers' TrainingArguments where they exist there."""

    epochs: float = Field(default=1.0, gt=0.0, le=MAX_EPOCHS)
    max_steps: int | None = Field(default=None, ge=1, le=MAX_TRAINING_STEPS)
    """Optimizer steps; overrides `epochs`."""
    batch_size: int = Field(default=8, ge=1, le=1024)
    """Rows in one forward and backward pass."""
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1024)
    learning_rate: float = Field(default=2e-4, gt=0.0, le=1.0)
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(default=0, ge=0, le=MAX_TRAINING_STEPS)
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0, le=1000.0)
    max_tokens: int = Field(default=1024, ge=MIN_ROW_TOKENS, le=MAX_NEW_TOKENS)
    """Tokens of one row; of text2text-generation, of its input and of its target. A longer one is counted in the
    report, and cut at its end; a question's context is cut into windows that overlap, and all of them are learned."""
    logging_steps: int = Field(default=1, ge=1, le=10_000)
    eval_steps: int | None = Field(default=None, ge=1, le=MAX_TRAINING_STEPS)
    """Evaluate on the validation file every so many steps; always before the first and after the last."""
    save_steps: int | None = Field(default=None, ge=1, le=MAX_TRAINING_STEPS)
    """Keep a checkpoint every so many steps; one is made besides when the worker drains or the job is paused."""
    packing: bool = False
    """Put several rows into one of up to `max_tokens`, each attending to itself alone: no padding is computed, and
    `batch_size` counts the rows so made. For text-generation with methods that have no virtual tokens."""
    keep: Literal["last", "best"] = "last"
    """Publish the adapter of the last step, or of the evaluation with the lowest validation loss."""
    early_stopping_patience: int | None = Field(default=None, ge=1, le=MAX_PATIENCE)
    """Stop after so many evaluations in a row without an improvement of the validation loss."""
    early_stopping_threshold: float = Field(default=0.0, ge=0.0, le=1000.0)
    """The loss must fall by more than this below the best one so far to count as an improvement."""
    seed: int = Field(default=42, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _evaluates_what_it_waits_for(self) -> Self:
        if self.early_stopping_patience is not None and self.eval_steps is None:
            raise ValueError("`early_stopping_patience` counts evaluations: set `eval_steps` too")
        return self


class SupervisedObjective(Spec):
    """Learn the answers of the rows, word for word."""

    type: Literal["supervised"] = "supervised"


class DpoObjective(Spec):
    """Direct preference optimization (Rafailov et al. 2023): make preferred answers more probable than the others,
    compared with the base model."""

    type: Literal["dpo"]
    beta: float = Field(default=0.1, gt=0.0, le=100.0)
    """How strongly the answers' log-probabilities are held near the base's: the paper's β."""


ObjectiveSpec = Annotated[SupervisedObjective | DpoObjective, Field(discriminator="type")]
Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]
"""transformers' names for where it reports a training to."""


class FineTuneSpec(Scheduling):
    """Train an adapter on an uploaded data set; the result names the published adapter."""

    kind: Literal["finetune"]
    task: FineTuneTask = "text-generation"
    """What is learned; it decides what the rows of the files must be."""
    model: Name
    """The base model's catalogue name."""
    training_file: FileId
    validation_file: FileId | None = None
    suffix: str = Field(default="adapter", pattern=SUFFIX_PATTERN)
    """A word of yours in the adapter's id: `ft:<model>:<owner>:<suffix>:<number>`."""
    method: Method = LoraMethod()
    objective: ObjectiveSpec = SupervisedObjective()
    """What is made of the rows; DPO has rows of its own."""
    hyperparameters: Hyperparameters = Hyperparameters()
    on_broken_row: Literal["fail", "skip"] = "fail"
    """What a row does that cannot be used: end the job, or be left out. It is counted and named either way."""
    publish_checkpoints: bool = False
    """Publish each checkpoint as an adapter too: `<adapter>:ckpt-step-<number>`."""
    save_total_limit: int | None = Field(default=None, ge=1, le=MAX_PUBLISHED_CHECKPOINTS)
    """Of the published checkpoints keep so many, the newest and the best; None keeps all."""
    report_to: tuple[Tracker, ...] = ()
    """Where the worker reports the metrics to, besides its events: what is installed and configured there."""

    @field_validator("method")
    @classmethod
    def _is_one_of_the_tasks(cls, method: AnyMethod, info: ValidationInfo) -> AnyMethod:
        task = info.data.get("task", "text-generation")
        if isinstance(method, PromptLearningMethod) and task != "text-generation":
            raise ValueError(f"{method.type} trains virtual tokens for text-generation: for {task} use lora or ia3")
        if isinstance(method, OftMethod) and task in ENCODER_ADAPTER_TASKS:
            raise ValueError(f"oft's rotations fit no batch of several adapters, as those of {task} are: use lora")
        return method

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        settings = self.hyperparameters
        for name, asked in (
            ("early_stopping_patience", settings.early_stopping_patience is not None),
            ("keep", settings.keep == "best"),
        ):
            if asked and self.validation_file is None:
                raise ValueError(f"`hyperparameters.{name}` goes by the validation loss: send a `validation_file`")
        if self.objective.type == "dpo" and self.task != "text-generation":
            raise ValueError(f"the objective dpo is for text-generation, not for {self.task}")
        if self.task == "feature-extraction" and settings.batch_size < 2:
            raise ValueError(
                "`hyperparameters.batch_size` must be at least 2 for feature-extraction: a row's positive is told "
                "from those of the other rows of its batch"
            )
        if settings.packing:
            self._can_be_packed()
        return self

    def _can_be_packed(self) -> None:
        if self.task != "text-generation" or self.objective.type != "supervised":
            raise ValueError("`hyperparameters.packing` is for text-generation with the supervised objective")
        if isinstance(self.method, PromptLearningMethod):
            raise ValueError(
                f"`hyperparameters.packing` leaves no place for the virtual tokens of {self.method.type} before each "
                "row: use another method, or no packing"
            )
