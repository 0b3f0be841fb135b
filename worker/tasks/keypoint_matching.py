"""Points of one image found again in another."""

from typing import Any

from PIL import Image

from tandem.specs.keypoint_matching import ImagePair, KeypointMatchingParameters
from worker.media.reader import MediaReader
from worker.tasks.pipeline_task import PipelineTask


class KeypointMatching(PipelineTask[KeypointMatchingParameters]):
    """Points of the first image of a pair, and where they are in the second.

    Coordinates are as transformers' pipeline (5.23) gives them: it hands on an image's size as (width, height) where
    (height, width) is read. So in an image that is not square, x is off by the factor height / width, and y by its
    inverse.
    """

    unit = "pixels"
    together = False
    """In a batch, the points found in a pair are filled up to the largest number, which SuperGlue's matching weighs
    in: scores changed by up to 0.01 with their company. The library cannot batch pairs either."""

    def read(self, value: ImagePair, media: MediaReader, param: str) -> list[Image.Image]:
        return [media.image(image, f"{param}.images[{place}]") for place, image in enumerate(value.images)]

    def cost(self, model_inputs: dict[str, Any]) -> int:
        """Pixels · channels of both images."""
        return super().cost(model_inputs["model_inputs"])
