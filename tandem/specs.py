"""What may be asked of Tandem: one spec per job kind and task, with every limit named here."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

MAX_INPUTS = 2048
"""Inputs in one encoder job (as many as OpenAI's embeddings take)."""
MAX_INPUT_CHARACTERS = 1_000_000
"""Characters in one text: far above any context, low enough to keep a broken producer out of memory."""
MAX_MESSAGES = 2048
"""Messages in one chat prompt."""
MAX_NEW_TOKENS = 131_072
"""Tokens that one job may generate; the model's own context limits further."""
MAX_STOP_STRINGS = 16
"""Stop strings of one job (OpenAI takes 4; vLLM's users send more)."""
MAX_STOP_CHARACTERS = 256
"""Characters in one stop string: they bound how much text is held back while streaming."""
MAX_LORA_RANK = 256
"""LoRA rank: beyond it the adapter bank's memory grows without measured gain."""
MAX_EPOCHS = 100
"""Passes over the training data."""
MAX_TRAINING_STEPS = 10_000_000
"""Optimizer steps of one job: a bound on a typing mistake, not on work."""

MAX_DELAY_SECONDS = 30 * 86_400.0
"""A job may be put off, or may have until its deadline, for so long."""
MAX_RETRIES = 20
"""Tries after the first one: beyond them somebody should look (dead letters)."""
MAX_METADATA = 16
"""Pairs of a job's own labels (OpenAI's limit), up to 64 and 512 characters each."""
MAX_URL_CHARACTERS = 2048

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,255}$"
"""Model and adapter names: hub ids, `ft:` names and catalogue names; no spaces, no leading punctuation."""
SUFFIX_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"
"""The user's part of an adapter's name (OpenAI allows 64 characters; 40 keep the whole name readable)."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_INPUT_CHARACTERS)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
FileId = Annotated[str, Field(pattern=r"^file-[0-9a-f]{24}$")]


class Spec(BaseModel):
    """Base of all that a user may send: unknown fields are refused by name, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Priority = Literal["low", "normal", "high", "urgent"]
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high", "urgent")
"""In ascending order; the place is the number that the job store keeps."""


class RetryPolicy(Spec):
    """When an attempt that failed for a passing reason is repeated. Other failures are never repeated."""

    max_retries: int = Field(default=3, ge=0, le=MAX_RETRIES)
    """Further attempts after failed ones; then the job has failed, and is a dead letter."""
    backoff_seconds: float = Field(default=2.0, gt=0.0, le=3600.0)
    """Before the first repetition; each further pause is twice as long, and up to half of it is left to chance."""
    max_backoff_seconds: float = Field(default=600.0, gt=0.0, le=86_400.0)


class Webhook(Spec):
    """Where to tell that the job has ended."""

    url: str = Field(min_length=1, max_length=MAX_URL_CHARACTERS)


class Scheduling(Spec):
    """What every job may say about when and how it is run."""

    priority: Priority = "normal"
    """A more urgent job goes first; one that has waited long gets its turn all the same."""
    delay_seconds: float = Field(default=0.0, ge=0.0, le=MAX_DELAY_SECONDS)
    """Start no earlier than so long after submission."""
    not_before: float | None = Field(default=None, ge=0.0)
    """Start no earlier than this time (seconds since the epoch, on the queue server's clock)."""
    deadline_seconds: float | None = Field(default=None, gt=0.0, le=MAX_DELAY_SECONDS)
    """So long after submission the job expires, wherever it is."""
    retry: RetryPolicy = RetryPolicy()
    webhook: Webhook | None = None
    metadata: dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]] = Field(
        default={}, max_length=MAX_METADATA
    )
    """Labels of yours; they come back with the job and its webhook."""

    @model_validator(mode="after")
    def _starts_at_one_time(self) -> Self:
        if self.delay_seconds and self.not_before is not None:
            raise ValueError("`delay_seconds` and `not_before` both say when to start: give one")
        return self


class ChatMessage(Spec):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(max_length=MAX_INPUT_CHARACTERS)


class GenerationParameters(Spec):
    """How tokens are chosen, and when generation ends. Greedy unless a temperature is given."""

    max_new_tokens: int = Field(default=256, ge=1, le=MAX_NEW_TOKENS)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    """0 is greedy: the most probable token each time."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    """0 keeps all tokens."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: tuple[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)], ...] = Field(
        default=(), max_length=MAX_STOP_STRINGS
    )
    """Generation ends before the first of these strings; it is not part of the text."""
    return_full_text: bool = False
    """Put the prompt before the generated text (plain prompts only)."""


class EmbeddingParameters(Spec):
    """How one vector is made from a text's token vectors."""

    normalize: bool = True
    """Scale each vector to length 1, so that a dot product is the cosine."""
    truncate: bool = False
    """Cut a text that is longer than the model; otherwise it is refused."""


class FillMaskParameters(Spec):
    top_k: int = Field(default=5, ge=1, le=1000)


class ClassificationParameters(Spec):
    top_k: int | None = Field(default=None, ge=1, le=10_000)
    """How many labels to return, best first; all by default."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] = "softmax"


class InferenceBase(Scheduling):
    kind: Literal["inference"] = "inference"
    model: Name
    """A catalogue name, or an adapter's id, which names its base by itself."""
    adapter: Name | None = None
    """An adapter of `model`; None runs the base."""


class TextGenerationSpec(InferenceBase):
    """Text or chat in, text out, in the continuous batch."""

    task: Literal["text-generation"]
    inputs: Text | Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]
    parameters: GenerationParameters = GenerationParameters()
    stream: bool = False
    """Emit every token as an event of the job while it runs."""


TextInputs = Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_INPUTS)]
"""One text, or many: the result is then a list with one entry an input, in order."""


class FeatureExtractionSpec(InferenceBase):
    """Texts in, one vector each out: sentence embeddings by the model's own pooling."""

    task: Literal["feature-extraction"]
    inputs: TextInputs
    parameters: EmbeddingParameters = EmbeddingParameters()


class FillMaskSpec(InferenceBase):
    """Texts with one mask token each in, the best fillings out."""

    task: Literal["fill-mask"]
    inputs: TextInputs
    parameters: FillMaskParameters = FillMaskParameters()


class TextClassificationSpec(InferenceBase):
    """Texts in, labels with scores out."""

    task: Literal["text-classification"]
    inputs: TextInputs
    parameters: ClassificationParameters = ClassificationParameters()


EncoderSpec = FeatureExtractionSpec | FillMaskSpec | TextClassificationSpec
InferenceSpec = Annotated[
    TextGenerationSpec | FeatureExtractionSpec | FillMaskSpec | TextClassificationSpec,
    Field(discriminator="task"),
]
Task = Literal["text-generation", "feature-extraction", "fill-mask", "text-classification"]


class LoraMethod(Spec):
    """Low-rank adaptation (Hu et al. 2021): W x + (alpha / r) B A x, with A and B trained."""

    type: Literal["lora"] = "lora"
    r: int = Field(default=8, ge=1, le=MAX_LORA_RANK)
    alpha: float = Field(default=16.0, gt=0.0, le=4096.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=64)
    """Names of the linear layers to adapt, such as `q_proj`; None takes PEFT's choice for the model."""


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
    max_tokens: int = Field(default=1024, ge=8, le=MAX_NEW_TOKENS)
    """Tokens of one row; a longer row is cut at its end and counted in the report."""
    logging_steps: int = Field(default=1, ge=1, le=10_000)
    eval_steps: int | None = Field(default=None, ge=1, le=MAX_TRAINING_STEPS)
    """Evaluate on the validation file every so many steps; always before the first and after the last."""
    save_steps: int | None = Field(default=None, ge=1, le=MAX_TRAINING_STEPS)
    """Keep a checkpoint every so many steps; one is made besides when the worker drains or the job is paused."""
    seed: int = Field(default=42, ge=0, lt=2**32)


class FineTuneSpec(Scheduling):
    """Train an adapter on an uploaded data set; the result names the published adapter."""

    kind: Literal["finetune"]
    task: Literal["text-generation"] = "text-generation"
    model: Name
    """The base model's catalogue name."""
    training_file: FileId
    validation_file: FileId | None = None
    suffix: str = Field(default="adapter", pattern=SUFFIX_PATTERN)
    """A word of yours in the adapter's id: `ft:<model>:<owner>:<suffix>:<number>`."""
    method: LoraMethod = LoraMethod()
    hyperparameters: Hyperparameters = Hyperparameters()


JobSpec = Annotated[InferenceSpec | FineTuneSpec, Field(discriminator="kind")]
job_spec_adapter: TypeAdapter[
    TextGenerationSpec | FeatureExtractionSpec | FillMaskSpec | TextClassificationSpec | FineTuneSpec
] = TypeAdapter(JobSpec)
"""Reads a spec from JSON or a dict; raises pydantic.ValidationError that names each field at fault."""


# Rows of a training file (JSON lines), in OpenAI's two shapes.


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


TrainingRow = ChatRow | CompletionRow
