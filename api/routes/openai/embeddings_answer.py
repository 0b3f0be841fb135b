"""OpenAI's embeddings: the request, and the answer out of a feature-extraction job's result. Batches use both."""

import base64
import math
import struct
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from api.routes.openai.chat_request import Word
from api.routes.openai.nulls import NullableSpec
from tandem.errors import InvalidRequest
from tandem.specs import FeatureExtractionSpec, Name
from tandem.specs.encoders import TextsOrTokens

MAX_DIMENSIONS = 65_536
"""More than any model has."""


class EmbeddingsRequest(NullableSpec):
    """OpenAI's embedding request. What is not here is refused by name."""

    model: Annotated[Name, Field(examples=["all-minilm-l6-v2"])]
    input: Annotated[TextsOrTokens, Field(examples=[["a red apple", "a ripe fruit"]])]
    """One text or many, each as it is, or as token ids of the model's own tokenizer."""
    encoding_format: Literal["float", "base64"] = "float"
    """`base64`: each vector as little-endian 32-bit floats, as OpenAI's clients ask for it."""
    dimensions: int | None = Field(default=None, ge=1, le=MAX_DIMENSIONS)
    """Keep so many numbers of each vector, scaled to length 1 again. Good for models that were trained for it
    (Matryoshka); others lose some of their quality."""
    user: Word | None = None
    """Taken and not used."""

    def spec(self) -> FeatureExtractionSpec:
        """The job that answers this request."""
        return FeatureExtractionSpec(task="feature-extraction", model=self.model, inputs=self.input)


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


def embeddings_answer(body: EmbeddingsRequest, result: dict[str, Any]) -> Embeddings:
    """The answer to a request, out of the result of its job.

    Raises InvalidRequest if the model's vectors have fewer numbers than `dimensions` keeps.
    """
    tokens = result["prompt_tokens"]
    return Embeddings(
        data=[
            Embedding(index=index, embedding=_encoded(_shortened(row, body.dimensions), body.encoding_format))
            for index, row in enumerate(result["rows"])
        ],
        model=body.model,
        usage=EmbeddingsUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


def _shortened(vector: list[float], dimensions: int | None) -> list[float]:
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise InvalidRequest(
            f"`dimensions` is {dimensions}; this model's vectors have {len(vector)}: ask for no more",
            param="dimensions",
        )
    kept = vector[:dimensions]
    length = math.hypot(*kept)
    return [number / length for number in kept] if length else kept


def _encoded(vector: list[float], encoding: Literal["float", "base64"]) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
