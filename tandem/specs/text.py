"""Tasks on texts that transformers' pipelines do; those that answer questions and those that write are beside it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tandem.specs.answers import DecisionSpec, QuestionAnsweringSpec, TableQuestionAnsweringSpec
from tandem.specs.base import InferenceBase, Spec, TextInputs
from tandem.specs.candidate_labels import (
    MAX_CANDIDATE_LABELS,
    MAX_LABEL_CHARACTERS,
    CandidateLabels,
    HypothesisTemplate,
    refuse_too_many_pairs,
)
from tandem.specs.text_to_text import SummarizationSpec, Text2TextGenerationSpec, TranslationSpec

MAX_STRIDE = 8192
"""Tokens that two windows of a text share: fewer than a window, which no encoder makes longer."""


class TokenClassificationParameters(Spec):
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "none"
    """How tokens of one entity become one result: `none` gives every token by itself."""
    ignore_labels: tuple[Annotated[str, Field(max_length=MAX_LABEL_CHARACTERS)], ...] = Field(
        default=("O",), max_length=MAX_CANDIDATE_LABELS
    )
    """Labels that are left out of the result."""
    stride: int | None = Field(default=None, ge=0, le=MAX_STRIDE)
    """Read a long text in windows that share so many tokens; None reads its first window alone."""

    @model_validator(mode="after")
    def _windows_are_joined_by_entities(self) -> Self:
        if self.stride is not None and self.aggregation_strategy == "none":
            raise ValueError(
                '`stride` needs an `aggregation_strategy` other than "none": where windows overlap, entities are '
                "joined and single tokens would come twice"
            )
        return self


class TokenClassificationSpec(InferenceBase):
    """Texts in, their labelled tokens or entities out."""

    task: Literal["token-classification"]
    inputs: TextInputs
    parameters: TokenClassificationParameters = TokenClassificationParameters()


class ZeroShotClassificationParameters(Spec):
    candidate_labels: CandidateLabels
    hypothesis_template: HypothesisTemplate = "This example is {}."
    """What is claimed of the text, with `{}` where the label goes."""
    multi_label: bool = False
    """Judge every label by itself; otherwise their scores sum to 1."""


class ZeroShotClassificationSpec(InferenceBase):
    """Texts in, labels of the caller's own with scores out, by a model of natural language inference."""

    task: Literal["zero-shot-classification"]
    inputs: TextInputs
    parameters: ZeroShotClassificationParameters

    @model_validator(mode="after")
    def _has_so_many_pairs(self) -> Self:
        refuse_too_many_pairs(self.inputs, self.parameters.candidate_labels)
        return self


TextSpec = (
    TokenClassificationSpec
    | ZeroShotClassificationSpec
    | QuestionAnsweringSpec
    | TableQuestionAnsweringSpec
    | DecisionSpec
    | SummarizationSpec
    | TranslationSpec
    | Text2TextGenerationSpec
)
