"""Tasks that part images into masks."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from tandem.errors import InvalidRequest
from tandem.specs.mask_generation import MaskGenerationParameters
from tandem.specs.vision import ImageSegmentationParameters
from worker.media.encode import PNG, png
from worker.tasks.batched_task import Pause
from worker.tasks.image_task import ImageTask
from worker.tasks.pipeline_task import PipelinePiece, refusals_named
from worker.tasks.result_files import ResultFiles
from worker.tasks.suppression import best_boxes


class ImageSegmentation(ImageTask[ImageSegmentationParameters]):
    """The labelled segments of an image."""

    def _pieces(self, value: Image.Image, parameters: ImageSegmentationParameters, name: str) -> list[PipelinePiece]:
        able = [
            subtask
            for subtask in ("panoptic", "instance", "semantic")
            if hasattr(self.pipeline.image_processor, f"post_process_{subtask}_segmentation")
        ]
        if parameters.subtask is not None and parameters.subtask not in able:
            raise InvalidRequest(
                f"the model's image processor cannot do `parameters.subtask` {parameters.subtask!r}; it can do "
                f"{', '.join(able)}",
                param="parameters.subtask",
            )
        return super()._pieces(value, parameters, name)

    def present(self, result: Any, files: ResultFiles) -> Any:
        return [{**segment, "mask": files.add(png(segment["mask"]), PNG)} for segment in result]


class MaskGeneration(ImageTask[MaskGenerationParameters]):
    """The masks of all things in an image, asked for at a grid of points: one piece a crop of the image.

    Two steps of the library's pipeline are done here. It embeds an image while it is preprocessed, and so outside the
    device's turns; and its last step needs torchvision, which it uses to suppress overlapping boxes alone.
    """

    together = False
    """The points of one crop fill a batch, and the library filters the masks of a batch's first image alone."""

    def _pieces(self, value: Image.Image, parameters: MaskGenerationParameters, name: str) -> list[PipelinePiece]:
        self._require_able(parameters)
        _, forward, postprocess = self._all_options(parameters)
        with self._preprocessing, refusals_named(name):
            crops = self._crops(value, parameters)
        batch = parameters.points_per_batch or _default(self.pipeline.preprocess, "points_per_batch")
        forward = {**forward, "points_per_batch": batch}
        return [self._piece(crop, forward, postprocess) for crop in crops]

    def _crops(self, image: Image.Image, parameters: MaskGenerationParameters) -> list[dict[str, Any]]:
        """The pixels and points of each crop; the first is the whole image."""
        processor = self.pipeline.image_processor
        default = inspect.signature(self.pipeline.preprocess).parameters

        def chosen(name: str) -> Any:
            given = getattr(parameters, name)
            return default[name].default if given is None else given

        boxes, points, images, labels = processor.generate_crop_boxes(
            image,
            processor.size.get("longest_edge", processor.size.get("height")),
            chosen("crops_n_layers"),
            chosen("crop_overlap_ratio"),
            chosen("points_per_crop"),
            chosen("crop_n_points_downscale_factor"),
        )
        inputs = processor(images=images, return_tensors="pt").to(self.pipeline.dtype)
        return [
            {
                "input_points": points[:, :, place : place + 1],
                "input_labels": labels[:, :, place : place + 1],
                "input_boxes": boxes[place : place + 1],
                "full_image_size": inputs["original_sizes"][0],
                **{name: value[place : place + 1] for name, value in inputs.items()},
            }
            for place in range(len(images))
        ]

    def forward(self, pieces: Sequence[PipelinePiece], pause: Pause) -> Sequence[Any]:
        [piece] = pieces
        options = dict(piece.forward_options)
        inputs = dict(piece.model_inputs)
        points, labels, size = inputs.pop("input_points"), inputs.pop("input_labels"), options.pop("points_per_batch")
        inputs |= self._embed(inputs.pop("pixel_values"))
        outputs = []
        for start in range(0, points.shape[1], size):
            if start:
                # Ended jobs are dropped between two crops; a crop is not cut short.
                pause()
            asked = {"input_points": points[:, start : start + size], "input_labels": labels[:, start : start + size]}
            outputs.append(self.pipeline.forward({**inputs, **asked, "is_last": False}, **options))
        return [outputs]

    def _embed(self, pixels: torch.Tensor) -> dict[str, Any]:
        with torch.no_grad():
            embeddings = self.pipeline.model.get_image_embeddings(pixels.to(self.pipeline.device))
        if isinstance(embeddings, tuple):
            # SAM-HQ also gives those of its encoder's middle layers.
            return {"image_embeddings": embeddings[0], "intermediate_embeddings": embeddings[1]}
        return {"image_embeddings": embeddings}

    def result(
        self,
        outputs: Sequence[Any],
        pieces: Sequence[PipelinePiece],  # noqa: ARG002 - as other tasks have it
        parameters: MaskGenerationParameters,
    ) -> Any:
        """What the library's `post_process_for_mask_generation` returns, with our own suppression of boxes."""
        batches = [batch for crop in outputs for batch in crop]
        lengths = [mask for batch in batches for mask in batch["masks"]]
        scores = torch.cat([batch["iou_scores"] for batch in batches])
        boxes = torch.cat([batch["boxes"] for batch in batches])
        threshold = parameters.crops_nms_thresh
        if threshold is None:
            threshold = _default(self.pipeline.postprocess, "crops_nms_thresh")
        kept = best_boxes(boxes.float(), scores, threshold)
        row = {
            "masks": [_mask(lengths[place]) for place in kept],
            "scores": [scores[place].item() for place in kept],
        }
        if parameters.output_rle_mask:
            row["rle_mask"] = [lengths[place] for place in kept]
        if parameters.output_bboxes_mask:
            row["bounding_boxes"] = [boxes[place].tolist() for place in kept]
        return row

    def present(self, result: Any, files: ResultFiles) -> Any:
        return {**result, "masks": [files.add(png(mask), PNG) for mask in result["masks"]]}

    def _require_able(self, parameters: MaskGenerationParameters) -> None:
        """Raises InvalidRequest for a parameter that this model's image processor does not take."""
        able = inspect.signature(self.pipeline.image_processor.post_process_masks).parameters
        for name in ("max_hole_area", "max_sprinkle_area"):
            if getattr(parameters, name) is not None and name not in able:
                raise InvalidRequest(
                    f"this model's image processor does not take `parameters.{name}`; leave it out",
                    param=f"parameters.{name}",
                )


def _default(function: Any, name: str) -> Any:
    """The default of one of the library's own parameters."""
    return inspect.signature(function).parameters[name].default


def _mask(lengths: dict[str, Any]) -> Image.Image:
    """A mask, white on black, of its run lengths.

    `size` is [height, width]; `counts` go column by column, and begin with a run outside.
    """
    height, width = lengths["size"]
    inside = np.arange(len(lengths["counts"])) % 2 == 1
    pixels = np.repeat(inside, lengths["counts"]).reshape(width, height).T
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8) * 255)
