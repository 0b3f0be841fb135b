"""The tasks: transformers' pipelines under their own names, and those that its version 5 dropped but people use."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

Task = Literal[
    # Texts
    "text-generation",
    "feature-extraction",
    "sentence-similarity",
    "fill-mask",
    "text-classification",
    "token-classification",
    "zero-shot-classification",
    "question-answering",
    "table-question-answering",
    "summarization",
    "translation",
    "text2text-generation",
    "decision",
    # Images and video
    "image-classification",
    "image-feature-extraction",
    "image-segmentation",
    "image-to-image",
    "object-detection",
    "depth-estimation",
    "mask-generation",
    "keypoint-matching",
    "video-classification",
    "zero-shot-image-classification",
    "zero-shot-object-detection",
    # Audio
    "audio-classification",
    "automatic-speech-recognition",
    "text-to-audio",
    "zero-shot-audio-classification",
    # Several at once
    "document-question-answering",
    "visual-question-answering",
    "image-to-text",
    "image-text-to-text",
    "any-to-any",
]
TASKS: tuple[Task, ...] = get_args(Task)

ALIASES: dict[str, Task] = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "text-to-speech": "text-to-audio",
    "vqa": "visual-question-answering",
}
"""Other names that transformers and huggingface_hub take for a task."""

TRANSLATION = re.compile(r"translation_([A-Za-z_]+)_to_([A-Za-z_]+)")
"""transformers' names for the translation between two languages, such as `translation_en_to_fr`."""


def task_named(name: Any) -> Any:
    """The task that goes by this name; anything else as it is, to be refused by the field that it stands in."""
    if isinstance(name, str):
        if TRANSLATION.fullmatch(name):
            return "translation"
        return ALIASES.get(name, name)
    return name


def with_task_named(spec: Any) -> Any:
    """A spec whose task has its own name; the languages of `translation_en_to_fr` become parameters."""
    if not isinstance(spec, dict) or not isinstance(spec.get("task"), str):
        return spec
    named = {**spec, "task": task_named(spec["task"])}
    languages = TRANSLATION.fullmatch(spec["task"])
    if languages and isinstance(spec.get("parameters", {}), dict):
        named["parameters"] = {"src_lang": languages[1], "tgt_lang": languages[2], **spec.get("parameters", {})}
    return named


NamedTask = Annotated[Task, BeforeValidator(task_named)]
"""A task, by its own name or another."""
