"""OpenAI's fine-tuning request, and the spec that it stands for."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from api.errors import invalid_request
from tandem.errors import TandemError
from tandem.specs import FineTuneSpec, Hyperparameters, Name, Spec
from tandem.specs.base import MAX_METADATA, FileId
from tandem.specs.finetune import FineTuneTask

BASE_LEARNING_RATE = float(Hyperparameters.model_fields["learning_rate"].default)
"""What `learning_rate_multiplier` multiplies."""
SMALL_METHOD_MULTIPLIER = 10.0
"""`auto` for the methods that train some thousand numbers: they learn nothing at LoRA's rate."""
SMALL_METHODS = frozenset({"ia3", "vera", "prefix-tuning", "prompt-tuning", "p-tuning"})
DEFAULT_BETA = 0.1
"""Of DPO, as in its paper."""


def _unless_auto(value: Any) -> Any:
    return None if value == "auto" else value


def _or_auto(kind: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": kind, "exclusiveMinimum": 0}]})


Count = Annotated[int | None, BeforeValidator(_unless_auto), _or_auto("integer")]
Factor = Annotated[float | None, BeforeValidator(_unless_auto), _or_auto("number")]
"""A figure, or `auto`, which is None here. Their limits are the spec's."""

RENAMED = {"epochs": "n_epochs", "learning_rate": "learning_rate_multiplier"}
"""Hyperparameters of ours that have another name in OpenAI's."""


class TuningHyperparameters(BaseModel):
    """OpenAI's, each `auto` or given. Others of a job of ours may stand beside them, such as `max_steps`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    n_epochs: Count = None
    """`auto` is 1."""
    batch_size: Count = None
    """`auto` is 8."""
    learning_rate_multiplier: Factor = None
    """Of the learning rate 0.0002. `auto` is 1, and 10 for methods that train few numbers, such as IA³."""

    @model_validator(mode="after")
    def _says_nothing_twice(self) -> Self:
        for ours, openais in RENAMED.items():
            if ours in (self.model_extra or {}):
                raise ValueError(f"`{ours}` is `{openais}` here")
        if "seed" in (self.model_extra or {}):
            raise ValueError("`seed` belongs to the job: send it beside `method`")
        return self

    def ours(self, method: str) -> dict[str, Any]:
        """The spec's hyperparameters, without those that are left to its defaults. `method` is an adapter's type."""
        given: dict[str, Any] = dict(self.model_extra or {})
        if self.n_epochs is not None:
            given["epochs"] = self.n_epochs
        if self.batch_size is not None:
            given["batch_size"] = self.batch_size
        multiplier = self.learning_rate_multiplier
        if multiplier is None:
            multiplier = SMALL_METHOD_MULTIPLIER if method in SMALL_METHODS else 1.0
        if multiplier != 1.0:
            given["learning_rate"] = BASE_LEARNING_RATE * multiplier
        return given


class DpoHyperparameters(TuningHyperparameters):
    beta: Factor = None
    """`auto` is 0.1."""


class SupervisedMethod(Spec):
    hyperparameters: TuningHyperparameters = TuningHyperparameters()


class DpoMethod(Spec):
    hyperparameters: DpoHyperparameters = DpoHyperparameters()


class TuningMethod(Spec):
    """What is made of the rows: `supervised` learns the answers, `dpo` the preferences."""

    type: Literal["supervised", "dpo"]
    supervised: SupervisedMethod | None = None
    dpo: DpoMethod | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        other = {"supervised": "dpo", "dpo": "supervised"}[self.type]
        if getattr(self, other) is not None:
            raise ValueError(f"`{other}` does not belong to the type {self.type!r}; leave it out")
        return self


class TuningRequest(Spec):
    """OpenAI's request for a fine-tuning job. From `lora` on, the fields are our own."""

    model: Annotated[Name, Field(examples=["smollm2-135m-instruct"])]
    training_file: Annotated[FileId, Field(examples=["file-0123456789abcdef01234567"])]
    validation_file: FileId | None = None
    suffix: str | None = None
    seed: int | None = None
    method: TuningMethod | None = None
    hyperparameters: TuningHyperparameters | None = None
    """OpenAI's older place for those of a supervised training."""
    integrations: tuple[dict[str, Any], ...] | None = None
    """Not used, and a warning event says so."""
    metadata: dict[str, str] | None = Field(default=None, max_length=MAX_METADATA)
    lora: dict[str, Any] | None = None
    """Options of LoRA by PEFT's names: `r`, `alpha`, `dropout`, `target_modules`, `use_rslora`, `use_dora`."""
    method_options: dict[str, Any] | None = None
    """Another kind of adapter: its `type`, such as `ia3`, and its options."""
    task: FineTuneTask = "text-generation"
    """What is learned: an encoder learns classes, tags or answers."""
    publish_checkpoints: bool = False
    """Make every checkpoint a model that can be asked, and lists it among the job's checkpoints."""
    save_total_limit: int | None = None
    """Of the published checkpoints keep so many."""
    on_broken_row: Literal["fail", "skip"] = "fail"

    @model_validator(mode="after")
    def _says_nothing_twice(self) -> Self:
        if self.lora is not None and self.method_options is not None:
            raise ValueError("`lora` and `method_options` both describe the adapter: give one")
        if self.method is not None and self.hyperparameters is not None:
            raise ValueError("`hyperparameters` is the older place of those in `method`: give one")
        return self

    @property
    def _objective(self) -> Literal["supervised", "dpo"]:
        return "supervised" if self.method is None else self.method.type

    @property
    def _tuning(self) -> TuningHyperparameters:
        if self.method is None:
            return self.hyperparameters or TuningHyperparameters()
        if self.method.type == "dpo":
            return (self.method.dpo or DpoMethod()).hyperparameters
        return (self.method.supervised or SupervisedMethod()).hyperparameters

    def spec(self) -> FineTuneSpec:
        """The job that is asked for. Raises InvalidRequest naming the field as it stands in this request."""
        adapter = {"type": "lora", **(self.lora or {})} if self.method_options is None else self.method_options
        hyperparameters = self._tuning.ours(str(adapter.get("type")))
        if self.seed is not None:
            hyperparameters["seed"] = self.seed
        fields: dict[str, Any] = {
            "kind": "finetune",
            "task": self.task,
            "model": self.model,
            "training_file": self.training_file,
            "method": adapter,
            "hyperparameters": hyperparameters,
            "publish_checkpoints": self.publish_checkpoints,
            "on_broken_row": self.on_broken_row,
        }
        optional = {
            "validation_file": self.validation_file,
            "suffix": self.suffix,
            "save_total_limit": self.save_total_limit,
            "metadata": self.metadata,
        }
        fields |= {name: value for name, value in optional.items() if value is not None}
        if isinstance(tuning := self._tuning, DpoHyperparameters):
            beta = DEFAULT_BETA if tuning.beta is None else tuning.beta
            fields["objective"] = {"type": "dpo", "beta": beta}
        try:
            return FineTuneSpec.model_validate(fields)
        except ValidationError as error:
            raise self._in_our_words(invalid_request(error.errors())) from error

    def _in_our_words(self, error: TandemError) -> TandemError:
        """The error of a job's field as one of the field in this request that it comes from."""
        if error.param is None:
            return error
        field = self._field(error.param)
        return type(error)(error.message.replace(f"`{error.param}`", f"`{field}`"), param=field)

    def _field(self, param: str) -> str:
        """Where this request has what a job has in `param`, a path with dots."""
        first, _, rest = param.partition(".")
        if param == "hyperparameters.seed":
            return "seed"
        if first == "hyperparameters":
            return ".".join(part for part in (self._place_of_hyperparameters, RENAMED.get(rest, rest)) if part)
        if first == "objective":
            return f"{self._place_of_hyperparameters}.{rest}"
        if first == "method":
            options = "lora" if self.method_options is None else "method_options"
            return f"{options}.{rest}" if rest else options
        return param

    @property
    def _place_of_hyperparameters(self) -> str:
        return "hyperparameters" if self.method is None else f"method.{self.method.type}.hyperparameters"
