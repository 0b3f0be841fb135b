"""The masks of all things in an image are those of the library's own pipeline, with torchvision or without it."""

import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.sam.image_processing_pil_sam import _post_process_for_mask_generation

from tandem.errors import InvalidRequest
from tandem.specs.mask_generation import MaskGenerationParameters
from tests.golden.media_jobs import Asked, MediaJobs, sent
from tests.tiny_models import samples
from worker.tasks.suppression import best_boxes

# Few points, and thresholds that leave several masks of the tiny model: they lie over each other, so that what is
# suppressed shows.
SEVERAL = {"points_per_crop": 8, "stability_score_thresh": 0.5, "pred_iou_thresh": 0.5, "crops_nms_thresh": 0.95}
PARAMETERS: tuple[dict[str, Any], ...] = (
    {"points_per_crop": 8},
    SEVERAL,
    {**SEVERAL, "points_per_batch": 10},
    {**SEVERAL, "crops_n_layers": 1, "points_per_crop": 4, "crop_overlap_ratio": 0.2},
    {**SEVERAL, "mask_threshold": 0.5, "stability_score_offset": 2.0, "stability_score_thresh": 0.3},
    {**SEVERAL, "output_rle_mask": True, "output_bboxes_mask": True},
    # So stable is no mask: none is left.
    {"points_per_crop": 4, "stability_score_thresh": 1.0, "output_bboxes_mask": True},
)


@pytest.fixture(scope="module")
def masks(tiny_folder: Callable[[str], Path]) -> MediaJobs:
    return MediaJobs("mask-generation", tiny_folder("tiny-sam"))


@pytest.fixture
def library(masks: MediaJobs, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The library's pipeline. Its last step imports one function of torchvision: it gets the definition of it."""
    boxes = types.ModuleType("torchvision.ops.boxes")
    boxes.batched_nms = _batched_nms  # type: ignore[attr-defined]  # a module made here
    for name in ("torchvision", "torchvision.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchvision.ops.boxes", boxes)
    # The method asks whether torchvision is installed, and then calls this function.
    monkeypatch.setattr(
        masks.pipeline.image_processor, "post_process_for_mask_generation", _post_process_for_mask_generation
    )
    pipeline: Callable[..., Any] = masks.pipeline
    return pipeline


def same_masks(row: Any, expected: Any) -> None:
    """Asserts that an opened row has the library's masks, scores, run lengths and boxes."""
    assert list(row) == list(expected)
    assert len(row["masks"]) == len(expected["masks"])
    for mask, wanted in zip(row["masks"], expected["masks"], strict=True):
        assert np.array_equal(np.asarray(mask), np.where(wanted, 255, 0))
    assert row["scores"] == pytest.approx(expected["scores"].tolist(), abs=1e-5)
    assert row.get("rle_mask") == expected.get("rle_mask")
    if "bounding_boxes" in row:
        assert row["bounding_boxes"] == expected["bounding_boxes"].tolist()


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda parameters: "-".join(parameters))
def test_masks_are_the_librarys(masks: MediaJobs, library: Callable[..., Any], parameters: dict[str, Any]) -> None:
    """Of strangers at once, though each crop is a forward of its own."""
    images = samples.images()
    answers = masks.run(Asked(sent(images[:2]), parameters), Asked(sent(images[2]), parameters))
    rows = [row for job in answers for row in job]
    crops = 5 if parameters.get("crops_n_layers") else 1
    assert masks.forwards == len(images) * crops
    for row, image in zip(rows, images, strict=True):
        same_masks(masks.opened(row), library(image, **parameters))


def test_several_masks_are_left(masks: MediaJobs) -> None:
    """Otherwise the order and the suppression of masks could not be seen above."""
    [[row]] = masks.run(Asked(sent(samples.image()), SEVERAL))
    [[fewer]] = masks.run(Asked(sent(samples.image()), {**SEVERAL, "crops_nms_thresh": 0.3}))
    assert len(row["masks"]) > len(fewer["masks"]) > 0
    assert row["scores"] == sorted(row["scores"], reverse=True)


def test_a_parameter_of_other_image_processors(masks: MediaJobs) -> None:
    """Holes are closed by SAM 2's alone."""
    [answer] = masks.run(Asked(sent(samples.image()), {"max_hole_area": 10}))
    assert isinstance(answer, InvalidRequest)
    assert answer.param == "parameters.max_hole_area"


def test_the_device_is_lent_between_two_batches_of_points(masks: MediaJobs) -> None:
    """64 points, 10 at a time: seven batches, six pauses."""
    [[piece]] = masks.task.encode([samples.image()], MaskGenerationParameters(points_per_crop=8, points_per_batch=10))
    pauses = []

    def pause() -> Sequence[bool]:
        pauses.append(1)
        return [False]

    [batches] = masks.task.forward([piece], pause)
    assert (len(batches), len(pauses)) == (7, 6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 4, st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])), max_size=12),
    st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
)
def test_best_boxes_are_those_of_the_definition(drawn: list[Any], threshold: float) -> None:
    """Box by box in plain Python, the best first; of equal scores, the first."""
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d, _ in drawn]
    scores = [score for *_, score in drawn]
    found = best_boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores), threshold)
    assert found == _suppressed(boxes, scores, threshold)


def _batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """torchvision's function for boxes of one class."""
    assert not idxs.any()
    return torch.tensor(_suppressed(boxes.tolist(), scores.tolist(), iou_threshold), dtype=torch.long)


def _suppressed(boxes: list[Any], scores: list[float], threshold: float) -> list[int]:
    kept: list[int] = []
    for place in sorted(range(len(boxes)), key=lambda place: -scores[place]):
        if all(_overlap(boxes[place], boxes[other]) <= threshold for other in kept):
            kept.append(place)
    return kept


def _overlap(one: Any, other: Any) -> float:
    """Intersection over union; of two boxes without an area, 0."""

    def area(left: float, top: float, right: float, bottom: float) -> float:
        return max(0.0, right - left) * max(0.0, bottom - top)

    common = area(max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3]))
    union = area(*one) + area(*other) - common
    return common / union if union else 0.0
