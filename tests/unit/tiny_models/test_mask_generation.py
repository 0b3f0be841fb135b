"""SAM up to the pipeline's last step, `batched_nms`, which only torchvision has."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.tiny_models import samples


def test_sam_draws_masks_that_the_pipeline_keeps(tiny_pipeline: Callable[[str, str], Any]) -> None:
    """Preprocessing and forward run: every kept mask has the picture's size, a score and a box inside the picture."""
    pipe = tiny_pipeline("mask-generation", "tiny-sam")
    picture = samples.image(64, 48, seed=1)
    chunks = list(pipe.preprocess(picture, points_per_crop=8))
    assert len(chunks) == 1
    assert chunks[0]["input_points"].shape == (1, 64, 1, 2)
    output = pipe.forward(chunks[0])
    assert len(output["masks"]) == len(output["iou_scores"]) == len(output["boxes"]) > 10
    assert all(mask["size"] == [48, 64] for mask in output["masks"])
    assert (output["iou_scores"] > 0.88).all()
    left, top, right, bottom = output["boxes"].unbind(1)
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 64).all()
    assert (bottom <= 48).all()
    again = pipe.forward(next(iter(pipe.preprocess(picture, points_per_crop=8))))
    assert torch.equal(output["iou_scores"], again["iou_scores"])
    assert output["masks"] == again["masks"]


def test_without_torchvision_the_last_step_says_what_is_missing(tiny_pipeline: Callable[[str, str], Any]) -> None:
    """An ImportError that names it; with torchvision the pipeline gives its masks."""
    pipe = tiny_pipeline("mask-generation", "tiny-sam")
    if importlib.util.find_spec("torchvision") is None:
        with pytest.raises(ImportError, match="Torchvision"):
            pipe(samples.image(), points_per_crop=8)
    else:
        assert pipe(samples.image(), points_per_crop=8)["masks"]
