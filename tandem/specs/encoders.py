"""Tasks of encoders on texts: embeddings, masked words, classification."""

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from tandem.specs.base import MAX_INPUTS, InferenceBase, Spec, Text, TextInputs

MAX_TARGETS = 1000
"""Words to choose among for a mask, as many as `top_k` may return."""
MAX_TARGET_CHARACTERS = 256
"""In one of them: they are words."""
MAX_UNPOOLED_INPUTS = 64
"""Texts whose token vectors one job returns: 512 tokens of 768 floats are about 8 MB of JSON."""


MAX_INPUT_TOKENS = 131_072
"""Token ids of one text: no encoder reads so many."""

Tokens = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=MAX_INPUT_TOKENS)
]


def _form(value: Any) -> str:
    """Which form a value is meant to have. Its name is in brackets, so that no error takes it for a field."""
    if not isinstance(value, list | tuple):
        return "(text)"
    if value and isinstance(value[0], int):
        return "(tokens)"
    return "(many)"


TextOrTokens = Annotated[
    Annotated[Text, Tag("(text)")] | Annotated[Tokens, Tag("(tokens)")],
    Discriminator(lambda value: "(tokens)" if isinstance(value, list | tuple) else "(text)"),
]
TextsOrTokens = Annotated[
    Annotated[Text, Tag("(text)")]
    | Annotated[Tokens, Tag("(tokens)")]
    | Annotated[tuple[TextOrTokens, ...], Field(min_length=1, max_length=MAX_INPUTS), Tag("(many)")],
    Discriminator(_form),
]


class EmbeddingParameters(Spec):
    """What is made of a text's token vectors."""

    pooling: Literal["model", "none"] = "model"
    """`model` joins them to one vector as the model was trained to do; `none` gives them all, [tokens, hidden], those
    of special tokens too, as transformers' pipeline does."""
    normalize: bool | None = None
    """Scale each vector to length 1, so that a dot product is the cosine; None does so with `pooling: model`."""
    prompt_name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Which of the model's own prompts (its config_sentence_transformers.json) to put before each text."""
    truncate: bool = False
    """Cut a text that is longer than the model; otherwise it is refused."""
    truncation_direction: Literal["left", "right"] = "right"
    """Where to cut: `right` keeps the beginning."""

    @model_validator(mode="after")
    def _keeps_the_prompt(self) -> Self:
        if self.truncate and self.truncation_direction == "left" and self.prompt_name is not None:
            raise ValueError(
                '`truncation_direction: "left"` would cut off the prompt of `prompt_name`: give one of them'
            )
        return self


class FillMaskParameters(Spec):
    top_k: int = Field(default=5, ge=1, le=1000)
    targets: tuple[Annotated[str, Field(max_length=MAX_TARGET_CHARACTERS)], ...] | None = Field(
        default=None, min_length=1, max_length=MAX_TARGETS
    )
    """Choose among these words alone. Of one that is no token of the model, its first token is taken."""


class ClassificationParameters(Spec):
    top_k: int | None = Field(default=None, ge=1, le=10_000)
    """How many labels to return, best first; all by default."""
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """How scores are made of the model's outputs; None does as the model's configuration says."""


class FeatureExtractionSpec(InferenceBase):
    """Texts in, vectors out: sentence embeddings by the model's own pooling, or a vector a token."""

    task: Literal["feature-extraction"]
    inputs: TextsOrTokens
    """Texts, each as it is or as token ids of the model's own tokenizer. The latter are read as their text."""
    parameters: EmbeddingParameters = EmbeddingParameters()

    @model_validator(mode="after")
    def _has_vectors_for_so_many_texts(self) -> Self:
        texts = 1 if isinstance(self.inputs, str) or isinstance(self.inputs[0], int) else len(self.inputs)
        if self.parameters.pooling == "none" and texts > MAX_UNPOOLED_INPUTS:
            raise ValueError(
                f'`inputs` are {texts} texts; with `pooling: "none"`, which gives a vector a token, at most '
                f"{MAX_UNPOOLED_INPUTS} are taken: send several jobs"
            )
        return self


class FillMaskSpec(InferenceBase):
    """Texts with mask tokens in, the best fillings out: a list for each text, or one for each of its masks."""

    task: Literal["fill-mask"]
    inputs: TextInputs
    parameters: FillMaskParameters = FillMaskParameters()


class TextPair(Spec):
    """Two texts to be judged together."""

    text: Text
    text_pair: Text


TextOrPair = Text | TextPair


class TextClassificationSpec(InferenceBase):
    """Texts, or pairs of them, in; labels with scores out."""

    task: Literal["text-classification"]
    inputs: TextOrPair | Annotated[tuple[TextOrPair, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    parameters: ClassificationParameters = ClassificationParameters()


class SentencesToCompare(Spec):
    """One sentence, and those to be compared with it."""

    source_sentence: Text
    sentences: tuple[Text, ...] = Field(min_length=1, max_length=MAX_INPUTS)


class SimilarityParameters(Spec):
    truncate: bool = False
    """Cut a text that is longer than the model; otherwise it is refused."""


class SentenceSimilaritySpec(InferenceBase):
    """A sentence and others in, the cosine of each to the first out, by the embeddings of feature-extraction."""

    task: Literal["sentence-similarity"]
    inputs: SentencesToCompare | Annotated[tuple[SentencesToCompare, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    parameters: SimilarityParameters = SimilarityParameters()


EncoderSpec = SentenceSimilaritySpec | FeatureExtractionSpec | FillMaskSpec | TextClassificationSpec
