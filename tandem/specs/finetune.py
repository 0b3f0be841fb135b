"""Fine-tuning: methods, hyperparameters, and the rows of a training file."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationInfo, field_validator

from tandem.specs.base import (
    MAX_INPUT_CHARACTERS,
    MAX_NEW_TOKENS,
    SUFFIX_PATTERN,
    FileId,
    Name,
    Scheduling,
    Spec,
    Text,
)
from tandem.specs.generation import MAX_MESSAGES, ChatMessage
from tandem.specs.methods import AnyMethod, LoraMethod, Method, PromptLearningMethod
from tandem.specs.tasks import Task

MAX_EPOCHS = 100
"""Passes over the training data."""
MAX_TRAINING_STEPS = 10_000_000
"""Optimizer steps of one job: a bound on a typing mistake, not on work."""
MIN_ROW_TOKENS = 8
"""Tokens of a row that a training must have room for: fewer are a mistake in the limit."""
MAX_LABEL_CHARACTERS = 256
"""A label is a name; texts that long are answers, which a language model learns."""
MAX_ROW_WORDS = 65_536
"""Words in one row of tagged words: no encoder reads further."""
MAX_ANSWERS = 64
"""Answers to one question: SQuAD's annotators gave up to six."""

FineTuneTask = Literal["text-generation", "text-classification", "token-classification", "question-answering"]
RESIDENT_TASK: dict[FineTuneTask, Task] = {
    "text-generation": "text-generation",
    "text-classification": "feature-extraction",
    "token-classification": "feature-extraction",
    "question-answering": "feature-extraction",
}
"""Task that is learned → task whose resident model it is learned on. The encoder's is the body without a head: one
copy of it makes embeddings and serves every adapter, each of which brings its own head."""


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
    """Tokens of one row. A longer one is counted in the report, and cut at its end; a question's context is cut into
    windows that overlap, and all of them are learned."""
    logging_steps: int = Field(default=1, ge=1, le=10_000)
    eval_steps: int | None = Field(default=None, ge=1, le=MAX_TRAINING_STEPS)
    """Evaluate on the validation file every so many steps; always before the first and after the last."""
    save_steps: int | None = Field(default=None, ge=1, le=MAX_TRAINING_STEPS)
    """Keep a checkpoint every so many steps; one is made besides when the worker drains or the job is paused."""
    seed: int = Field(default=42, ge=0, lt=2**32)


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
    hyperparameters: Hyperparameters = Hyperparameters()

    @field_validator("method")
    @classmethod
    def _is_one_of_the_tasks(cls, method: AnyMethod, info: ValidationInfo) -> AnyMethod:
        task = info.data.get("task", "text-generation")
        if isinstance(method, PromptLearningMethod) and task != "text-generation":
            raise ValueError(f"{method.type} trains virtual tokens for text-generation: for {task} use lora or ia3")
        return method


# Rows of a training file (JSON lines). For text-generation, OpenAI's two shapes.


class ChatRow(Spec):
    """A conversation; the loss is on what the assistant says."""

    messages: tuple[ChatMessage, ...] = Field(min_length=2, max_length=MAX_MESSAGES)

    @field_validator("messages")
    @classmethod
    def _has_an_answer(cls, messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
        if messages[-1].role != "assistant" or not messages[-1].content.strip():
            raise ValueError("the last message must be the assistant's and not empty: it is what is learned")
        return messages


class CompletionRow(Spec):
    """A prompt and its completion; the loss is on the completion."""

    prompt: str = Field(max_length=MAX_INPUT_CHARACTERS)
    completion: Text


# For the tasks with a head of their own, the shapes that most data sets of the hub have.


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Label = Annotated[str, BeforeValidator(_number_as_text), Field(min_length=1, max_length=MAX_LABEL_CHARACTERS)]
"""A class's name; a whole number is the name that its digits make."""


class TextClassificationRow(Spec):
    """A text, or a pair of them, and its label."""

    text: Text
    text_pair: Text | None = None
    label: Label


class TokenClassificationRow(Spec):
    """The words of a sentence and a tag for each: `O`, `B-…` and `I-…` for entities, or any others."""

    tokens: tuple[Text, ...] = Field(min_length=1, max_length=MAX_ROW_WORDS)
    tags: tuple[Label, ...] = Field(validation_alias=AliasChoices("tags", "ner_tags"))
    id: Any = None
    """Not used: data sets have it."""

    @field_validator("tags")
    @classmethod
    def _one_a_word(cls, tags: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        tokens = info.data.get("tokens", tags)  # absent where they are at fault themselves
        if len(tags) != len(tokens):
            raise ValueError(f"there must be one for each of the {len(tokens)} tokens, and there are {len(tags)}")
        return tags


class Answers(Spec):
    """SQuAD's answers to one question, each with the place of its first character in the context; maybe none."""

    text: tuple[Text, ...] = Field(max_length=MAX_ANSWERS)
    answer_start: tuple[Annotated[int, Field(ge=0)], ...]

    @field_validator("answer_start")
    @classmethod
    def _one_a_text(cls, starts: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        texts = info.data.get("text", starts)
        if len(starts) != len(texts):
            raise ValueError(f"there must be one for each of the {len(texts)} texts, and there are {len(starts)}")
        return starts


class QuestionAnsweringRow(Spec):
    """A question and the context that holds its answer; with empty lists, one that the context does not answer.

    The first answer is learned; an evaluation takes any of them.
    """

    question: Text
    context: Text
    answers: Answers
    id: Any = None
    """Not used: SQuAD has it, and a title."""
    title: Any = None

    @field_validator("answers")
    @classmethod
    def _stand_in_the_context(cls, answers: Answers, info: ValidationInfo) -> Answers:
        context = info.data.get("context")
        for text, start in zip(answers.text, answers.answer_start, strict=True):
            if not text.strip():
                raise ValueError("an answer must have more than white space")
            if context is not None and context[start : start + len(text)] != text:
                found = context[start : start + len(text)]
                raise ValueError(f"{text!r} does not stand at character {start} of the context: {found!r} does")
        return answers


TrainingRow = ChatRow | CompletionRow | TextClassificationRow | TokenClassificationRow | QuestionAnsweringRow
