"""What a loaded model can be asked to do: one file for each task that encoders serve."""

from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from worker.tasks.encoder_task import EncoderTask
from worker.tasks.feature_extraction import FeatureExtraction
from worker.tasks.fill_mask import FillMask
from worker.tasks.text_classification import TextClassification

MODEL_CLASSES: dict[str, Any] = {
    "text-generation": AutoModelForCausalLM,
    "feature-extraction": AutoModel,
    "fill-mask": AutoModelForMaskedLM,
    "text-classification": AutoModelForSequenceClassification,
}
"""Task → the class whose `from_pretrained` gives a model with the head that the task needs."""

ENCODER_TASKS: dict[str, type[EncoderTask[Any, Any]]] = {
    "feature-extraction": FeatureExtraction,
    "fill-mask": FillMask,
    "text-classification": TextClassification,
}
"""The tasks that the encoder batcher serves; text-generation is the engine's."""
