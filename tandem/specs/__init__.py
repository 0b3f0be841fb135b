"""What may be asked of Tandem: one spec per job kind and task, with every limit named here."""

from typing import Annotated

from pydantic import BeforeValidator, Field, TypeAdapter
from typing_extensions import TypeAliasType

from tandem.specs.audio import AudioSpec
from tandem.specs.base import (
    MAX_DELAY_SECONDS,
    NAME_PATTERN,
    PRIORITIES,
    InferenceBase,
    Name,
    Priority,
    RetryPolicy,
    Scheduling,
    Spec,
    TextInputs,
    Webhook,
)
from tandem.specs.encoders import (
    ClassificationParameters,
    EmbeddingParameters,
    EncoderSpec,
    FeatureExtractionSpec,
    FillMaskParameters,
    FillMaskSpec,
    TextClassificationSpec,
)
from tandem.specs.finetune import FineTuneSpec, Hyperparameters
from tandem.specs.generation import ChatMessage, GenerationParameters, TextGenerationSpec
from tandem.specs.media import Media, replace_media
from tandem.specs.methods import MAX_LORA_RANK, METHODS, LoraMethod
from tandem.specs.multimodal import MultimodalSpec
from tandem.specs.tasks import ALIASES, TASKS, NamedTask, Task, with_task_named
from tandem.specs.text import TextSpec
from tandem.specs.training_rows import ChatRow, CompletionRow, TrainingRow
from tandem.specs.vision import VisionSpec

AnyInferenceSpec = TextGenerationSpec | EncoderSpec | TextSpec | VisionSpec | AudioSpec | MultimodalSpec
# Named types: each is one schema of the OpenAPI document, and FastAPI would merge its own marks with those of a plain
# Annotated, and lose the discriminator.
InferenceSpec = TypeAliasType("InferenceSpec", Annotated[AnyInferenceSpec, Field(discriminator="task")])
JobSpec = TypeAliasType(
    "JobSpec",
    Annotated[Annotated[InferenceSpec | FineTuneSpec, Field(discriminator="kind")], BeforeValidator(with_task_named)],
)
job_spec_adapter: TypeAdapter[AnyInferenceSpec | FineTuneSpec] = TypeAdapter(JobSpec)
"""Reads a spec from JSON or a dict; raises pydantic.ValidationError that names each field at fault."""

__all__ = [
    "ALIASES",
    "MAX_DELAY_SECONDS",
    "MAX_LORA_RANK",
    "METHODS",
    "NAME_PATTERN",
    "PRIORITIES",
    "TASKS",
    "AnyInferenceSpec",
    "ChatMessage",
    "ChatRow",
    "ClassificationParameters",
    "CompletionRow",
    "EmbeddingParameters",
    "EncoderSpec",
    "FeatureExtractionSpec",
    "FillMaskParameters",
    "FillMaskSpec",
    "FineTuneSpec",
    "GenerationParameters",
    "Hyperparameters",
    "InferenceBase",
    "InferenceSpec",
    "JobSpec",
    "LoraMethod",
    "Media",
    "Name",
    "NamedTask",
    "Priority",
    "RetryPolicy",
    "Scheduling",
    "Spec",
    "Task",
    "TextClassificationSpec",
    "TextGenerationSpec",
    "TextInputs",
    "TrainingRow",
    "Webhook",
    "job_spec_adapter",
    "replace_media",
    "with_task_named",
]
