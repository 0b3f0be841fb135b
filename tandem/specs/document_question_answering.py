"""document-question-answering: a question about a page, answered with words that stand on it."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tandem.specs.base import MAX_INPUTS, InferenceBase, Spec, Text
from tandem.specs.media import Media

MAX_WORDS = 20_000
"""Words on one page: a densely printed one has some 2,000."""
MAX_WORD_CHARACTERS = 1024
PAGE_SIDE = 1000.0
"""Boxes are given in thousandths of the page's sides, as LayoutLM was trained."""
MAX_SEQUENCE_TOKENS = 65_536
"""Tokens that a model reads at once; its own limit is lower."""
MAX_ANSWERS = 1000
TESSERACT_OPTION = re.compile(r"--(?:psm|oem|dpi)[ =]\d{1,4}")

Edge = Annotated[float, Field(ge=0.0, le=PAGE_SIDE)]
Box = tuple[Edge, Edge, Edge, Edge]
"""Left, top, right and bottom, in thousandths of the page."""
WordBox = tuple[Annotated[str, Field(max_length=MAX_WORD_CHARACTERS)], Box]


def _in_pairs(values: Any) -> Any:
    """huggingface_hub's flat form, a word and its box by turns, as pairs."""
    flat = isinstance(values, list | tuple) and values and isinstance(values[0], str)
    return list(zip(values[0::2], values[1::2], strict=True)) if flat and len(values) % 2 == 0 else values


WordBoxes = Annotated[tuple[WordBox, ...], Field(min_length=1, max_length=MAX_WORDS), BeforeValidator(_in_pairs)]


def _is_harmless(config: str) -> str:
    # Tesseract's other options read and write files of the worker.
    if TESSERACT_OPTION.sub("", config).strip():
        raise ValueError("may set `--psm`, `--oem` and `--dpi` to a number, and nothing else")
    return config


class DocumentQuestion(Spec):
    """A question about a page: its image, or its words with their boxes, or both."""

    image: Media | None = None
    question: Text
    word_boxes: WordBoxes | None = None
    """The words in reading order; without them they are read off the image by OCR, where the model needs them."""


class DocumentQuestionAnsweringParameters(Spec):
    doc_stride: int | None = Field(default=None, ge=0, le=MAX_SEQUENCE_TOKENS)
    """Tokens by which the parts of a page overlap that is longer than the model."""
    handle_impossible_answer: bool | None = None
    """Let the empty answer be one of the answers."""
    lang: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_+]{0,127}$")] | None = None
    """Of the OCR, as Tesseract names it: `eng`, `deu+fra`."""
    max_answer_len: int | None = Field(default=None, ge=1, le=MAX_SEQUENCE_TOKENS)
    """Tokens of the longest answer (15)."""
    max_question_len: int | None = Field(default=None, ge=1, le=MAX_SEQUENCE_TOKENS)
    """Tokens of the question; the rest is cut off."""
    max_seq_len: int | None = Field(default=None, ge=1, le=MAX_SEQUENCE_TOKENS)
    """Tokens of question and page that the model reads at once."""
    padding: Literal["do_not_pad", "longest", "max_length"] | None = None
    tesseract_config: Annotated[str, Field(max_length=256), AfterValidator(_is_harmless)] | None = None
    """Options of the OCR, such as `--psm 6`."""
    top_k: int | None = Field(default=None, ge=1, le=MAX_ANSWERS)
    """How many answers to return, best first (1)."""
    word_boxes: WordBoxes | None = None
    """For all inputs that bring none of their own."""


class DocumentQuestionAnsweringSpec(InferenceBase):
    """Questions about pages in, answers out, with scores and places among the words where the model gives them."""

    task: Literal["document-question-answering"]
    inputs: DocumentQuestion | Annotated[tuple[DocumentQuestion, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    parameters: DocumentQuestionAnsweringParameters = DocumentQuestionAnsweringParameters()

    @model_validator(mode="after")
    def _has_pages(self) -> Self:
        questions = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        if self.parameters.word_boxes is None and any(
            question.image is None and question.word_boxes is None for question in questions
        ):
            raise ValueError("every question needs a page: `image`, `word_boxes` or both")
        return self
