"""The task of masking all things in an image, whatever they are."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tandem.specs.base import InferenceBase, Spec
from tandem.specs.media import MediaInputs

MAX_CROP_LAYERS = 3
"""Layer i has 4^i crops, so that these are 85 images through the model's encoder: a gigabyte of SAM's input."""
MAX_POINTS_PER_SIDE = 128
"""Of the grid of points that a crop is asked at: its square are 16,384 masks."""
MAX_LOGIT = 1000.0
"""Masks are made of logits, which lie within tens."""
MAX_AREA = 100_000_000
"""Pixels of a hole or a speck: more than any image has."""


class MaskGenerationParameters(Spec):
    """Those of transformers' pipeline, by the same names. None is the pipeline's default, named in brackets."""

    points_per_batch: int | None = Field(default=None, ge=1, le=MAX_POINTS_PER_SIDE**2)
    """Points that go through the mask decoder at once (64): more need more memory."""
    points_per_crop: int | None = Field(default=None, ge=1, le=MAX_POINTS_PER_SIDE)
    """Points of each side of the square grid at which the model is asked for masks (32)."""
    crops_n_layers: int | None = Field(default=None, ge=0, le=MAX_CROP_LAYERS)
    """Ask again in 4 crops of the image, then in 16, and so on: so many times (0)."""
    crop_overlap_ratio: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Share of the image's short side that crops of the first layer overlap by; half of it in the next (0.34)."""
    crop_n_points_downscale_factor: int | None = Field(default=None, ge=1, le=MAX_POINTS_PER_SIDE)
    """Divide the points of each side by this from one layer of crops to the next (1)."""
    mask_threshold: float | None = Field(default=None, ge=-MAX_LOGIT, le=MAX_LOGIT)
    """From this logit on, a pixel belongs to a mask (0)."""
    pred_iou_thresh: float | None = Field(default=None, ge=0.0, le=1.0)
    """Leave out masks that the model itself deems worse (0.88)."""
    stability_score_thresh: float | None = Field(default=None, ge=0.0, le=1.0)
    """Leave out masks that change more when the threshold moves (0.95)."""
    stability_score_offset: float | None = Field(default=None, ge=0.0, le=MAX_LOGIT)
    """By so much the threshold is moved for that (1)."""
    crops_nms_thresh: float | None = Field(default=None, ge=0.0, le=1.0)
    """Of two masks whose boxes overlap more (intersection over union), the better one stays (0.7)."""
    max_hole_area: float | None = Field(default=None, gt=0.0, le=MAX_AREA)
    """Close holes of at most so many pixels, where the model's image processor can (SAM 2)."""
    max_sprinkle_area: float | None = Field(default=None, gt=0.0, le=MAX_AREA)
    """Remove specks of at most so many pixels, where the model's image processor can (SAM 2)."""
    output_rle_mask: bool = False
    """Return the masks as run lengths too, column by column, beginning with a run outside."""
    output_bboxes_mask: bool = False
    """Return the masks' boxes too: left, top, right, bottom."""

    @model_validator(mode="after")
    def _has_one_grid(self) -> Self:
        if self.crops_n_layers and (self.crop_n_points_downscale_factor or 1) > 1:
            raise ValueError(
                "`crop_n_points_downscale_factor` must be 1 with `crops_n_layers` above 0: transformers cannot stack "
                "grids of different sizes"
            )
        return self


class MaskGenerationSpec(InferenceBase):
    """Images in, masks of all things in them with scores out: black and white PNG files of the image's size."""

    task: Literal["mask-generation"]
    inputs: MediaInputs
    parameters: MaskGenerationParameters = MaskGenerationParameters()
