"""Tasks on images whose results are labels, boxes or vectors; those that answer with files are beside it."""

from collections.abc import Hashable, Sequence
from typing import Any

from PIL import Image

from tandem.errors import InvalidRequest, PromptTooLong
from tandem.specs.vision import (
    ImageClassificationParameters,
    ImageFeatureExtractionParameters,
    ObjectDetectionParameters,
    ZeroShotImageClassificationParameters,
    ZeroShotObjectDetectionParameters,
)
from worker.tasks.image_files import DepthEstimation, ImageToImage
from worker.tasks.image_task import ImageTask
from worker.tasks.keypoint_matching import KeypointMatching
from worker.tasks.pipeline_task import PipelinePiece, PipelineTask
from worker.tasks.video import VideoClassification
from worker.tasks.vision_masks import ImageSegmentation, MaskGeneration


class ImageClassification(ImageTask[ImageClassificationParameters]):
    """The labels of an image."""


class ImageFeatureExtraction(ImageTask[ImageFeatureExtractionParameters]):
    """The vectors of an image."""

    def result(
        self, outputs: Sequence[Any], pieces: Sequence[PipelinePiece], parameters: ImageFeatureExtractionParameters
    ) -> Any:
        if parameters.pool and "pooler_output" not in outputs[0]:
            raise InvalidRequest(
                "the model has no pooled vector; leave `parameters.pool` out and join the patches' vectors yourself",
                param="parameters.pool",
            )
        return super().result(outputs, pieces, parameters)


class ObjectDetection(ImageTask[ObjectDetectionParameters]):
    """The things in an image, with their boxes.

    Only images of one size after preprocessing share a forward. A model like DETR takes padded ones of different
    sizes too, but its answers on them are other than alone.
    """


class ZeroShotImageClassification(ImageTask[ZeroShotImageClassificationParameters]):
    """Which of the caller's labels fits an image."""

    def _company(self, inputs: dict[str, Any], forward: dict[str, Any]) -> Hashable:
        # The library encodes the texts of a batch's first image for all of them.
        texts = inputs["text_inputs"][0]["input_ids"].tolist()
        return (super()._company(inputs, forward), tuple(tuple(ids) for ids in texts))

    def _piece(self, item: Any, forward: dict[str, Any], postprocess: dict[str, Any]) -> PipelinePiece:
        require_short_labels(self.pipeline, item["text_inputs"][0]["input_ids"].shape[-1])
        return super()._piece(item, forward, postprocess)


class ZeroShotObjectDetection(ImageTask[ZeroShotObjectDetectionParameters]):
    """The things of the caller's labels in an image, with their boxes: one piece a label."""

    def options(self, parameters: ZeroShotObjectDetectionParameters) -> dict[str, Any]:
        options = super().options(parameters)
        # The pipeline takes the labels with the image.
        del options["candidate_labels"]
        return options

    def _pieces(
        self, value: Image.Image, parameters: ZeroShotObjectDetectionParameters, name: str
    ) -> list[PipelinePiece]:
        # The library's preprocessing makes the same pixels anew for every label, 7 MB each at OWL-ViT's 768 x 768.
        # Here they are made once, and all pieces share them.
        first, *others = parameters.candidate_labels
        [piece] = super()._pieces({"image": value, "candidate_labels": [first]}, parameters, name)
        pieces = [piece]
        for label in others:
            with self._preprocessing:
                text = self.pipeline.tokenizer(label, return_tensors="pt")
            inputs = {**piece.model_inputs, **text, "candidate_label": label}
            pieces.append(self._piece(inputs, piece.forward_options, piece.postprocess_options))
        return pieces

    def _piece(self, item: Any, forward: dict[str, Any], postprocess: dict[str, Any]) -> PipelinePiece:
        require_short_labels(self.pipeline, item["input_ids"].shape[-1])
        return super()._piece(item, forward, postprocess)

    def _shape(self, value: Any, inputs: dict[str, Any]) -> str:
        # The three channels of an image are not the three tokens of a label.
        return super()._shape(value, {} if value is inputs["pixel_values"] else inputs)


def require_short_labels(pipeline: Any, tokens: int) -> None:
    """Raises PromptTooLong if the model has no positions for a label of so many tokens."""
    config = getattr(pipeline.model.config, "text_config", None)
    positions = getattr(config, "max_position_embeddings", None)
    limits = [limit for limit in (pipeline.tokenizer.model_max_length, positions) if limit is not None]
    if limits and tokens > min(limits):
        raise PromptTooLong(
            f"the longest of `parameters.candidate_labels` has {tokens} tokens, with what is said around it; the "
            f"model reads {min(limits)}: shorten it",
            param="parameters.candidate_labels",
        )


VISION_TASKS: dict[str, type[PipelineTask[Any]]] = {
    "image-classification": ImageClassification,
    "image-feature-extraction": ImageFeatureExtraction,
    "image-segmentation": ImageSegmentation,
    "image-to-image": ImageToImage,
    "object-detection": ObjectDetection,
    "depth-estimation": DepthEstimation,
    "mask-generation": MaskGeneration,
    "keypoint-matching": KeypointMatching,
    "video-classification": VideoClassification,
    "zero-shot-image-classification": ZeroShotImageClassification,
    "zero-shot-object-detection": ZeroShotObjectDetection,
}
