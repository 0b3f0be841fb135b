"""What a loaded model can be asked to do: one class for each task."""

from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from worker.tasks.audio import AUDIO_TASKS
from worker.tasks.encoder_task import EncoderTask
from worker.tasks.feature_extraction import FeatureExtraction
from worker.tasks.fill_mask import FillMask
from worker.tasks.multimodal import MULTIMODAL_TASKS
from worker.tasks.pipeline_task import PipelineTask
from worker.tasks.text import TEXT_TASKS
from worker.tasks.text_classification import TextClassification
from worker.tasks.vision import VISION_TASKS

MODEL_CLASSES: dict[str, Any] = {
    "text-generation": AutoModelForCausalLM,
    "feature-extraction": AutoModel,
    "fill-mask": AutoModelForMaskedLM,
    "text-classification": AutoModelForSequenceClassification,
}
"""Task → the class whose `from_pretrained` gives a model with the head that the task needs; for the tasks that are
not a pipeline's."""

ENCODER_TASKS: dict[str, type[EncoderTask[Any, Any]]] = {
    "feature-extraction": FeatureExtraction,
    "fill-mask": FillMask,
    "text-classification": TextClassification,
}
"""Encoder tasks that do less work here than in the library's pipelines."""

PIPELINE_TASKS: dict[str, type[PipelineTask[Any]]] = TEXT_TASKS | VISION_TASKS | AUDIO_TASKS | MULTIMODAL_TASKS
"""Tasks that the library's pipelines do, batched."""

__all__ = ["ENCODER_TASKS", "MODEL_CLASSES", "PIPELINE_TASKS", "EncoderTask", "PipelineTask"]
