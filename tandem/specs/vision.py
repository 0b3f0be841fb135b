"""Tasks on images and video."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tandem.specs.base import InferenceBase, Spec
from tandem.specs.candidate_labels import CandidateLabels, HypothesisTemplate, refuse_too_many_pairs
from tandem.specs.encoders import MAX_UNPOOLED_INPUTS
from tandem.specs.keypoint_matching import KeypointMatchingSpec
from tandem.specs.mask_generation import MaskGenerationSpec
from tandem.specs.media import MediaInputs

MAX_TOP_K = 10_000
"""Labels or objects in one row: more than any model's configuration names."""
MAX_VIDEO_FRAMES = 1024
"""Frames that one video is judged by: the longest that a model of the library was trained with are 64."""
MAX_FRAME_STEP = 10_000
"""Frames between two that are looked at: some minutes of film."""


TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
ScoreFunction = Literal["sigmoid", "softmax", "none"]


class ImageClassificationParameters(Spec):
    function_to_apply: ScoreFunction | None = None
    """How scores are made of the model's outputs; None does as the model's configuration says."""
    top_k: TopK | None = None
    """How many labels to return, best first; five by default."""


class ImageClassificationSpec(InferenceBase):
    """Images in, labels with scores out."""

    task: Literal["image-classification"]
    inputs: MediaInputs
    parameters: ImageClassificationParameters = ImageClassificationParameters()


class ImageFeatureExtractionParameters(Spec):
    pool: bool | None = None
    """Return the model's pooled vector, [1, hidden], instead of a vector a patch, [1, patches, hidden]."""


class ImageFeatureExtractionSpec(InferenceBase):
    """Images in, vectors out."""

    task: Literal["image-feature-extraction"]
    inputs: MediaInputs
    parameters: ImageFeatureExtractionParameters = ImageFeatureExtractionParameters()

    @model_validator(mode="after")
    def _is_no_flood(self) -> Self:
        if not self.parameters.pool and isinstance(self.inputs, tuple) and len(self.inputs) > MAX_UNPOOLED_INPUTS:
            raise ValueError(
                f"without `pool`, a job returns the vectors of every patch and takes at most {MAX_UNPOOLED_INPUTS} "
                f"`inputs`, not {len(self.inputs)}: set `pool`, or send several jobs"
            )
        return self


class ImageSegmentationParameters(Spec):
    subtask: Literal["instance", "panoptic", "semantic"] | None = None
    """What to part the image into; None takes the first that the model can of panoptic, instance and semantic."""
    threshold: Probability | None = None
    """Leave out segments of a lower score (0.9); has no meaning for `semantic`, nor have the next two."""
    mask_threshold: Probability | None = None
    """From this probability on, a pixel belongs to a mask (0.5)."""
    overlap_mask_area_threshold: Probability | None = None
    """Leave out a mask of which others cover so much that a smaller share is left (0.5)."""


class ImageSegmentationSpec(InferenceBase):
    """Images in, labelled masks out: black and white PNG files of the image's size."""

    task: Literal["image-segmentation"]
    inputs: MediaInputs
    parameters: ImageSegmentationParameters = ImageSegmentationParameters()


class ImageToImageParameters(Spec):
    """None: models of the library enlarge or restore an image. Prompts and steps are for diffusion models."""


class ImageToImageSpec(InferenceBase):
    """Images in, enlarged or restored ones out: PNG files."""

    task: Literal["image-to-image"]
    inputs: MediaInputs
    parameters: ImageToImageParameters = ImageToImageParameters()


class ObjectDetectionParameters(Spec):
    threshold: Probability | None = None
    """Leave out objects of a lower score (0.5)."""


class ObjectDetectionSpec(InferenceBase):
    """Images in, labelled boxes out, in pixels of the image."""

    task: Literal["object-detection"]
    inputs: MediaInputs
    parameters: ObjectDetectionParameters = ObjectDetectionParameters()


class DepthEstimationParameters(Spec):
    """None: the library's pipeline takes none."""


class DepthEstimationSpec(InferenceBase):
    """Images in, depths out: a grey PNG file to look at, and an NPY file of the float32 values, [height, width]."""

    task: Literal["depth-estimation"]
    inputs: MediaInputs
    parameters: DepthEstimationParameters = DepthEstimationParameters()


class VideoClassificationParameters(Spec):
    num_frames: int | None = Field(default=None, ge=1, le=MAX_VIDEO_FRAMES)
    """Frames to look at; None takes as many as the model was made for."""
    frame_sampling_rate: int | None = Field(default=None, ge=1, le=MAX_FRAME_STEP)
    """Take every so-manieth frame from the video's beginning: every one by default."""
    function_to_apply: ScoreFunction | None = None
    """How scores are made of the model's outputs; None does as the model's configuration says."""
    top_k: TopK | None = None
    """How many labels to return, best first; five by default."""


class VideoClassificationSpec(InferenceBase):
    """Videos in, labels with scores out."""

    task: Literal["video-classification"]
    inputs: MediaInputs
    parameters: VideoClassificationParameters = VideoClassificationParameters()


class ZeroShotImageClassificationParameters(Spec):
    candidate_labels: CandidateLabels
    hypothesis_template: HypothesisTemplate | None = None
    """What is said of the image, with `{}` where the label goes; "This is a photo of {}." by default."""


class ZeroShotImageClassificationSpec(InferenceBase):
    """Images in, labels of the caller's own with scores out, by a model of images and texts."""

    task: Literal["zero-shot-image-classification"]
    inputs: MediaInputs
    parameters: ZeroShotImageClassificationParameters


class ZeroShotObjectDetectionParameters(Spec):
    candidate_labels: CandidateLabels
    """What to look for."""
    threshold: Probability | None = None
    """Leave out objects of a lower score (0.1)."""
    top_k: TopK | None = None
    """How many objects to return, best first; all by default."""


class ZeroShotObjectDetectionSpec(InferenceBase):
    """Images in, boxes of what the caller names out."""

    task: Literal["zero-shot-object-detection"]
    inputs: MediaInputs
    parameters: ZeroShotObjectDetectionParameters

    @model_validator(mode="after")
    def _looks_so_often(self) -> Self:
        refuse_too_many_pairs(self.inputs, self.parameters.candidate_labels)
        return self


VisionSpec = (
    ImageClassificationSpec
    | ImageFeatureExtractionSpec
    | ImageSegmentationSpec
    | ImageToImageSpec
    | ObjectDetectionSpec
    | DepthEstimationSpec
    | MaskGenerationSpec
    | KeypointMatchingSpec
    | VideoClassificationSpec
    | ZeroShotImageClassificationSpec
    | ZeroShotObjectDetectionSpec
)
