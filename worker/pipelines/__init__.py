"""The pipelines that transformers 5 dropped and people use, on the model classes that it kept."""

import threading

from transformers import (
    AutoModelForImageTextToText,
    AutoModelForImageToImage,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForVisualQuestionAnswering,
)
from transformers.pipelines import PIPELINE_REGISTRY

from worker.pipelines.image_to_image import ImageToImagePipeline
from worker.pipelines.image_to_text import ImageToTextPipeline
from worker.pipelines.question_answering import QuestionAnsweringPipeline
from worker.pipelines.text_to_text import (
    SummarizationPipeline,
    Text2TextGenerationPipeline,
    TranslationPipeline,
)
from worker.pipelines.visual_question_answering import VisualQuestionAnsweringPipeline

OWN = "tandem-"
_registering = threading.Lock()

DROPPED = {
    "image-to-image": (ImageToImagePipeline, AutoModelForImageToImage, "image"),
    "image-to-text": (ImageToTextPipeline, AutoModelForImageTextToText, "multimodal"),
    "question-answering": (QuestionAnsweringPipeline, AutoModelForQuestionAnswering, "text"),
    "summarization": (SummarizationPipeline, AutoModelForSeq2SeqLM, "text"),
    "text2text-generation": (Text2TextGenerationPipeline, AutoModelForSeq2SeqLM, "text"),
    "translation": (TranslationPipeline, AutoModelForSeq2SeqLM, "text"),
    "visual-question-answering": (
        VisualQuestionAnsweringPipeline,
        AutoModelForVisualQuestionAnswering,
        "multimodal",
    ),
}
"""Task → its pipeline, its model class, and transformers' word for its input."""


def library_name(task: str) -> str:
    """The name under which `transformers.pipeline()` knows a task once `register` was called.

    It refuses the names of tasks that it dropped, whoever registers them: ours have a prefix.
    """
    return f"{OWN}{task}" if task in DROPPED else task


def register() -> None:
    """Make `transformers.pipeline()` know these tasks, by `library_name`; a second call does nothing."""
    with _registering:
        for task, (pipeline, model, kind) in DROPPED.items():
            name = library_name(task)
            if name not in PIPELINE_REGISTRY.supported_tasks:
                PIPELINE_REGISTRY.register_pipeline(name, pipeline_class=pipeline, pt_model=model, type=kind)
