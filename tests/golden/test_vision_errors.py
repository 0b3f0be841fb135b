"""What cannot be served on images and videos is refused by name, and takes no other job along."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tandem.errors import InvalidModel, InvalidRequest, PromptTooLong
from tests.golden.media_jobs import Asked, MediaJobs, same, sent
from tests.tiny_models import samples
from worker.tasks.vision import VISION_TASKS

BROKEN = base64.b64encode(b"no image").decode()


@pytest.fixture(scope="module")
def classifier(tiny_folder: Callable[[str], Path]) -> MediaJobs:
    return MediaJobs("image-classification", tiny_folder("tiny-vit"))


def refused(answer: Any, kind: type[InvalidRequest], param: str) -> str:
    """Asserts that a job was refused for this field; gives the message."""
    assert type(answer) is kind
    assert answer.param == param
    return str(answer.message)


def test_a_broken_image_fails_its_job_alone(classifier: MediaJobs) -> None:
    image = samples.image()
    broken, [row] = classifier.run(Asked([sent(image), BROKEN]), Asked(sent(image)))
    refused(broken, InvalidRequest, "inputs[1]")
    same(row, classifier.pipeline(image))


def test_a_broken_image_fails_its_row_alone(classifier: MediaJobs) -> None:
    """Where errors are kept."""
    image = samples.image()
    [[first, broken, last]] = classifier.run(Asked([sent(image), BROKEN, sent(image)], on_row_error="keep"))
    refused(broken, InvalidRequest, "inputs[1]")
    same(first, classifier.pipeline(image))
    same(last, classifier.pipeline(image))


def test_a_model_without_a_pooled_vector(tiny_folder: Callable[[str], Path]) -> None:
    """`pool` is the caller's; the job beside it, which does not ask for it, gets its vectors."""
    jobs = MediaJobs("image-feature-extraction", tiny_folder("tiny-segformer"))
    image = samples.image()
    pooled, [row] = jobs.run(Asked(sent(image), {"pool": True}), Asked(sent(image)))
    assert "leave `parameters.pool` out" in refused(pooled, InvalidRequest, "parameters.pool")
    same(row, jobs.pipeline(image))


def test_a_subtask_that_the_model_cannot(tiny_folder: Callable[[str], Path]) -> None:
    jobs = MediaJobs("image-segmentation", tiny_folder("tiny-segformer"))
    [answer] = jobs.run(Asked(sent(samples.image()), {"subtask": "panoptic"}))
    assert "it can do semantic" in refused(answer, InvalidRequest, "parameters.subtask")


@pytest.mark.parametrize(
    ("task", "model"),
    [("zero-shot-image-classification", "tiny-clip"), ("zero-shot-object-detection", "tiny-owlvit")],
)
def test_a_label_longer_than_the_model_reads(task: str, model: str, tiny_folder: Callable[[str], Path]) -> None:
    jobs = MediaJobs(task, tiny_folder(model))
    image = samples.image()
    fits = {"candidate_labels": ["cat", "the sea"]}
    long, [row] = jobs.run(
        Asked(sent(image), {"candidate_labels": ["cat", "the long night " * 50]}), Asked(sent(image), fits)
    )
    refused(long, PromptTooLong, "parameters.candidate_labels")
    same(row, jobs.pipeline(image, **fits))


@pytest.fixture(scope="module")
def videos(tiny_folder: Callable[[str], Path]) -> MediaJobs:
    return MediaJobs("video-classification", tiny_folder("tiny-videomae"))


def test_a_video_that_is_too_short(videos: MediaJobs) -> None:
    """Four frames are wanted, every second one."""
    film = samples.mp4(samples.frames(6))
    [answer] = videos.run(Asked([sent(film)], {"frame_sampling_rate": 2}))
    assert "frame_sampling_rate" in refused(answer, InvalidRequest, "inputs[0]")


def test_a_number_of_frames_that_the_model_cannot(videos: MediaJobs) -> None:
    film = samples.mp4(samples.frames(8))
    wrong, [row] = videos.run(Asked(sent(film), {"num_frames": 6}), Asked(sent(film), {"num_frames": 4}))
    assert "made for 4 frames" in refused(wrong, InvalidRequest, "parameters.num_frames")
    assert len(row) == 4


def test_a_model_with_a_video_processor(videos: MediaJobs) -> None:
    """It decodes by itself, without the limits on what is decoded."""
    pipeline = videos.pipeline
    pipeline.video_processor = object()
    try:
        with pytest.raises(InvalidModel, match="video processor"):
            VISION_TASKS["video-classification"](pipeline)
    finally:
        pipeline.video_processor = None


@pytest.fixture(scope="module")
def pairs(tiny_folder: Callable[[str], Path]) -> MediaJobs:
    return MediaJobs("keypoint-matching", tiny_folder("tiny-superglue"))


def test_every_form_of_a_pair(pairs: MediaJobs) -> None:
    """Named or not, alone or in a list."""
    first, second = samples.image(seed=1), samples.image(seed=2)
    pair = sent([first, second])
    answers = pairs.run(Asked(pair), Asked({"images": pair}), Asked([pair]), Asked([{"images": pair}]))
    for [row] in answers:
        same(row, pairs.pipeline([first, second]))


def test_the_broken_image_of_a_pair(pairs: MediaJobs) -> None:
    [answer] = pairs.run(Asked([sent([samples.image(), samples.image()]), [sent(samples.image()), BROKEN]]))
    refused(answer, InvalidRequest, "inputs[1].images[1]")


def test_images_without_points(pairs: MediaJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """No match, and no error."""
    decoder = pairs.pipeline.model.keypoint_detector.keypoint_decoder
    monkeypatch.setattr(decoder, "keypoint_threshold", 0.9)
    assert pairs.run(Asked(sent([Image.new("RGB", (64, 48)), Image.new("RGB", (64, 48))]))) == [[[]]]


def test_depths_in_bfloat16(tiny_folder: Callable[[str], Path]) -> None:
    """What a model computes on a GPU; the library's own call fails there, since NumPy does not know bfloat16."""
    jobs = MediaJobs("depth-estimation", tiny_folder("tiny-dpt"), dtype=torch.bfloat16)
    image = samples.image()
    with pytest.raises(TypeError, match="BFloat16"):
        jobs.pipeline(image)
    [[row]] = jobs.run(Asked(sent(image)))
    depths = jobs.opened(row)["predicted_depth"]
    assert depths.dtype == "float32"
    exact = MediaJobs("depth-estimation", tiny_folder("tiny-dpt")).pipeline(image)["predicted_depth"].numpy()
    assert abs(depths - exact).mean() < 0.02 * exact.max()
