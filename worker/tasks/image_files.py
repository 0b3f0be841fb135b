"""Tasks on images whose result is an image again."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tandem.specs.vision import DepthEstimationParameters, ImageToImageParameters
from worker.media.encode import PNG, png
from worker.tasks.image_task import ImageTask
from worker.tasks.pipeline_task import PipelinePiece
from worker.tasks.result_files import ResultFiles

NPY = "application/x-npy"
"""NumPy's format of one array: exact, and `numpy.load` reads it. No media type is registered for it."""


class DepthEstimation(ImageTask[DepthEstimationParameters]):
    """How far away each pixel is, in the model's own unit."""

    def result(
        self, outputs: Sequence[Any], pieces: Sequence[PipelinePiece], parameters: DepthEstimationParameters
    ) -> Any:
        # The library's postprocessing makes NumPy arrays, which know no bfloat16.
        outputs[0]["predicted_depth"] = outputs[0]["predicted_depth"].float()
        return super().result(outputs, pieces, parameters)

    def present(self, result: Any, files: ResultFiles) -> Any:
        return {
            "predicted_depth": files.add(_npy(result["predicted_depth"]), NPY),
            "depth": files.add(png(result["depth"]), PNG),
        }


class ImageToImage(ImageTask[ImageToImageParameters]):
    """An image, enlarged or restored."""

    def present(self, result: Any, files: ResultFiles) -> Any:
        return {"image": files.add(png(result), PNG)}


def _npy(values: torch.Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, values.numpy(), allow_pickle=False)
    return file.getvalue()
