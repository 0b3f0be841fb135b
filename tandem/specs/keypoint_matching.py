"""The task of finding points of one image again in another."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tandem.specs.base import MAX_INPUTS, InferenceBase, Spec
from tandem.specs.media import Media


class ImagePair(Spec):
    """Two images: `{"images": [first, second]}`, or `[first, second]` for short."""

    images: tuple[Media, Media]

    @model_validator(mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        return {"images": value} if isinstance(value, list | tuple) else value


def _one_pair(value: Any) -> Any:
    """`[first, second]` as one pair: in a list of pairs, nothing is a string."""
    if isinstance(value, list | tuple) and any(isinstance(item, str) for item in value):
        return {"images": value}
    return value


class KeypointMatchingParameters(Spec):
    threshold: float | None = Field(default=None, ge=0.0, le=1.0)
    """Leave out matches of a lower score (0)."""


class KeypointMatchingSpec(InferenceBase):
    """Pairs of images in; points of the first with their places in the second and scores out."""

    task: Literal["keypoint-matching"]
    inputs: Annotated[
        ImagePair | Annotated[tuple[ImagePair, ...], Field(min_length=1, max_length=MAX_INPUTS)],
        BeforeValidator(_one_pair),
    ]
    parameters: KeypointMatchingParameters = KeypointMatchingParameters()
