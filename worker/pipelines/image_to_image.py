"""Image-to-image, which transformers 5 dropped; its model classes (Swin2SR) are still there."""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TO_IMAGE_MAPPING_NAMES
from transformers.pipelines.base import Pipeline


class ImageToImagePipeline(Pipeline):
    """An image in, the image that the model makes of it out: as the pipeline of transformers 4.57 did it.

    Swin2SR fills an image up to a multiple of its window with a mirrored border, and the border comes back enlarged
    at the right and at the bottom; that pipeline did not cut it off, and neither does this one.
    """

    # What the library's `pipeline` loads beside the model; it declares these as None.
    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The library's `check_model_type` only logs it.
        able = list(MODEL_FOR_IMAGE_TO_IMAGE_MAPPING_NAMES.values())
        if type(self.model).__name__ not in able:
            raise ValueError(f"image-to-image needs {' or '.join(able)}, not {type(self.model).__name__}")

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if kwargs:
            raise ValueError(f"image-to-image takes no parameters, but these were given: {', '.join(kwargs)}")
        return {}, {}, {}

    def preprocess(self, input_: Any, **_parameters: Any) -> Any:
        processor: Any = self.image_processor
        return processor(images=[load_image(input_)], return_tensors="pt").to(self.dtype)

    def _forward(self, input_tensors: Any, **_parameters: Any) -> Any:
        return self.model(**input_tensors)

    def postprocess(self, model_outputs: Any, **_parameters: Any) -> Image.Image:
        """From `reconstruction`, [1, channels, height, width] with values from 0 to 1."""
        values = model_outputs["reconstruction"][0].float().clamp(0, 1).numpy()
        pixels: np.ndarray[Any, Any] = (np.moveaxis(values, 0, -1) * 255.0).round().astype(np.uint8)
        return Image.fromarray(pixels.squeeze())
