"""What tasks on images have in common."""

from typing import Any

import torch
from PIL import Image

from tandem.specs import Media
from worker.media.reader import MediaReader
from worker.tasks.pipeline_task import PipelineTask, SpecParametersT


class ImageTask(PipelineTask[SpecParametersT]):
    """One image an input, whose size after the library's preprocessing is its cost."""

    unit = "pixels"

    def read(self, value: Media, media: MediaReader, param: str) -> Image.Image:
        return media.image(value, param)

    def cost(self, model_inputs: dict[str, Any]) -> int:
        """Elements of the largest tensor, pixels · channels; also where a few tokens come with the image."""
        return max([1, *(value.numel() for value in model_inputs.values() if isinstance(value, torch.Tensor))])
