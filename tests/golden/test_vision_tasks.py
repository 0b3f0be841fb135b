"""A job's rows on images and videos are what the library's own call returns, alone and batched with strangers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tandem.specs.vision import ZeroShotObjectDetectionParameters
from tests.golden.media_jobs import Asked, MediaJobs, same, sent
from tests.tiny_models import samples

THINGS = ["red square", "cat", "the sea"]


@dataclass(frozen=True)
class Case:
    """One task on one model, with one set of parameters."""

    task: str
    model: str
    parameters: dict[str, Any] = field(default_factory=dict)
    forwards: int = 1
    """For the six inputs of three strangers that come at once (see `test_strangers_get_their_own_rows`)."""

    def __str__(self) -> str:
        return "-".join([self.task, self.model, *self.parameters])


# DETR and GLPN keep an image's shape: three shapes are three forwards. SuperGlue's pairs run one by one.
CASES = (
    Case("image-classification", "tiny-vit"),
    Case("image-classification", "tiny-vit", {"top_k": 2, "function_to_apply": "sigmoid"}),
    Case("image-feature-extraction", "tiny-vit-features"),
    Case("image-feature-extraction", "tiny-vit-features", {"pool": True}),
    Case("image-segmentation", "tiny-segformer"),
    Case("image-segmentation", "tiny-segformer", {"subtask": "semantic"}),
    Case("image-segmentation", "tiny-detr-panoptic"),
    Case(
        "image-segmentation", "tiny-detr-panoptic", {"subtask": "instance", "threshold": 0.5, "mask_threshold": 0.3}
    ),
    Case("image-segmentation", "tiny-detr-panoptic", {"threshold": 0.6, "overlap_mask_area_threshold": 0.2}),
    Case("object-detection", "tiny-detr", forwards=3),
    Case("object-detection", "tiny-yolos", {"threshold": 0.1}),
    Case("depth-estimation", "tiny-dpt"),
    Case("depth-estimation", "tiny-glpn", forwards=3),
    Case("keypoint-matching", "tiny-superglue", forwards=6),
    Case("keypoint-matching", "tiny-superglue", {"threshold": 0.3}, forwards=6),
    Case("video-classification", "tiny-videomae"),
    Case(
        "video-classification", "tiny-videomae", {"frame_sampling_rate": 2, "top_k": 2, "function_to_apply": "none"}
    ),
    Case("zero-shot-image-classification", "tiny-clip", {"candidate_labels": THINGS}),
    Case(
        "zero-shot-image-classification",
        "tiny-clip",
        {"candidate_labels": ["dog", "the long night"], "hypothesis_template": "the {}"},
    ),
    Case("zero-shot-object-detection", "tiny-owlvit", {"candidate_labels": THINGS}),
    Case("zero-shot-object-detection", "tiny-owlvit", {"candidate_labels": THINGS, "threshold": 0.7, "top_k": 4}),
)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module")
def media_jobs(tiny_folder: Callable[[str], Path]) -> Callable[[str, str], MediaJobs]:
    """Gives a task on a tiny model."""
    return cache(lambda task, model: MediaJobs(task, tiny_folder(model)))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three videos of 8, 10 and 12 frames."""
    folder = tmp_path_factory.mktemp("films")
    paths = [folder / f"{seed}.mp4" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(samples.mp4(samples.frames(8 + 2 * seed, seed=seed)))
    return paths


def three_inputs(task: str, films: list[Path]) -> tuple[list[Any], list[Any]]:
    """As a user sends them, and as the library's own call takes them."""
    if task == "video-classification":
        return sent([path.read_bytes() for path in films]), [str(path) for path in films]
    wide, tall, square = samples.images()
    if task == "keypoint-matching":
        pairs = [[wide, samples.image(seed=4)], [tall, square], [samples.image(seed=5), wide]]
        return [{"images": sent(pair)} for pair in pairs], pairs
    return sent([wide, tall, square]), [wide, tall, square]


@each_case
def test_alone(case: Case, media_jobs: Callable[[str, str], MediaJobs], films: list[Path]) -> None:
    """One input in a job of its own."""
    jobs = media_jobs(case.task, case.model)
    for asked, native in zip(*three_inputs(case.task, films), strict=True):
        [[row]] = jobs.run(Asked(asked, case.parameters))
        same(jobs.opened(row), jobs.pipeline(native, **case.parameters))


@each_case
def test_strangers_get_their_own_rows(
    case: Case, media_jobs: Callable[[str, str], MediaJobs], films: list[Path]
) -> None:
    """Three jobs of three inputs, one, and two: they share forwards, and nobody can tell."""
    jobs = media_jobs(case.task, case.model)
    asked, native = three_inputs(case.task, films)
    expected = [jobs.pipeline(value, **case.parameters) for value in native]
    answers = jobs.run(
        Asked(asked, case.parameters), Asked(asked[1], case.parameters), Asked(asked[:2], case.parameters)
    )
    assert jobs.forwards == case.forwards
    for rows, wanted in zip(answers, [expected, expected[1:2], expected[:2]], strict=True):
        assert len(rows) == len(wanted)
        for row, other in zip(rows, wanted, strict=True):
            same(jobs.opened(row), other)


def test_models_tell_the_inputs_apart(media_jobs: Callable[[str, str], MediaJobs], films: list[Path]) -> None:
    """Otherwise the tests above could not see a row that went to the wrong job."""
    for case in CASES:
        jobs = media_jobs(case.task, case.model)
        _, native = three_inputs(case.task, films)
        first, second, third = (jobs.pipeline(value, **case.parameters) for value in native)
        for one, other in ((first, second), (second, third), (first, third)):
            with pytest.raises(AssertionError):
                same(one, other)


def test_labels_of_strangers_do_not_mix(media_jobs: Callable[[str, str], MediaJobs]) -> None:
    """The library encodes the labels of a batch's first image for all: other labels are another batch."""
    jobs = media_jobs("zero-shot-image-classification", "tiny-clip")
    image = samples.image()
    asked: list[dict[str, Any]] = [
        {"candidate_labels": THINGS},
        {"candidate_labels": THINGS, "hypothesis_template": "the {}"},
        {"candidate_labels": ["music", "cat", "the sea"]},
        {"candidate_labels": THINGS},
    ]
    answers = jobs.run(*(Asked(sent(image), parameters) for parameters in asked))
    assert jobs.forwards == 3
    for [row], parameters in zip(answers, asked, strict=True):
        same(row, jobs.pipeline(image, **parameters))


def test_many_labels_of_one_image_hold_its_pixels_once(media_jobs: Callable[[str, str], MediaJobs]) -> None:
    """A thousand labels, each with a copy of the pixels, would take gigabytes; they are looked for one by one."""
    task = media_jobs("zero-shot-object-detection", "tiny-owlvit").task
    parameters = ZeroShotObjectDetectionParameters(
        candidate_labels=tuple(f"a red cat {place}" for place in range(50))
    )
    [pieces] = task.encode([samples.image()], parameters)
    assert len(pieces) == 50
    assert len({id(piece.model_inputs["pixel_values"]) for piece in pieces}) == 1
    assert [piece.model_inputs["candidate_label"] for piece in pieces] == list(parameters.candidate_labels)


def test_what_is_done_after_the_forward_parts_nobody(media_jobs: Callable[[str, str], MediaJobs]) -> None:
    """Thresholds and numbers of labels are each job's own, in one forward."""
    jobs = media_jobs("image-classification", "tiny-vit")
    image = samples.image()
    [[few], [all_of_them]] = jobs.run(Asked(sent(image), {"top_k": 1}), Asked(sent(image)))
    assert jobs.forwards == 1
    assert (len(few), len(all_of_them)) == (1, 4)
