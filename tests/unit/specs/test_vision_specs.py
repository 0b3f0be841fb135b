"""What may be asked of images and videos: each field is checked by its name before a job is queued."""

import base64
import dataclasses
from typing import Any

import huggingface_hub as hub
import pytest
from pydantic import ValidationError

from tandem.specs import Media, job_spec_adapter, replace_media
from tandem.specs.candidate_labels import MAX_CANDIDATE_LABELS, MAX_LABEL_CHARACTERS, MAX_PAIRS
from tandem.specs.encoders import MAX_UNPOOLED_INPUTS

PICTURE = base64.b64encode(b"some picture").decode()
LABELS = {"candidate_labels": ["cat", "dog"]}
TASKS: dict[str, dict[str, Any]] = {
    "image-classification": {},
    "image-feature-extraction": {},
    "image-segmentation": {},
    "image-to-image": {},
    "object-detection": {},
    "depth-estimation": {},
    "mask-generation": {},
    "video-classification": {},
    "zero-shot-image-classification": LABELS,
    "zero-shot-object-detection": LABELS,
}
"""Tasks on one image or video an input, with the parameters that they need."""


def spec(task: str, inputs: Any = PICTURE, **parameters: Any) -> Any:
    return job_spec_adapter.validate_python({"task": task, "inputs": inputs, "parameters": parameters, **KIND})


KIND = {"kind": "inference"}


def fault(task: str, inputs: Any = PICTURE, **parameters: Any) -> tuple[str, str]:
    """Where the one fault of a spec is, and what is said about it."""
    with pytest.raises(ValidationError) as refusal:
        spec(task, inputs, **parameters)
    [error] = refusal.value.errors()
    # The first two parts of the place name the job's kind and its task.
    return ".".join(str(part) for part in error["loc"][2:]), error["msg"]


@pytest.mark.parametrize("task", TASKS)
def test_one_input_or_many(task: str) -> None:
    assert spec(task, **TASKS[task]).inputs == PICTURE
    assert spec(task, [PICTURE, "file-" + 24 * "a"], **TASKS[task]).inputs == (PICTURE, "file-" + 24 * "a")


@pytest.mark.parametrize("task", TASKS)
def test_an_unknown_parameter_is_refused_by_name(task: str) -> None:
    """Also `timeout`, which the library's pipelines take for fetching URLs: nothing is fetched here."""
    where, what = fault(task, **TASKS[task], timeout=3.0)
    assert where == "parameters.timeout"
    assert "not permitted" in what


@pytest.mark.parametrize(
    ("task", "parameter", "value"),
    [
        ("image-classification", "top_k", 0),
        ("image-classification", "function_to_apply", "softmin"),
        ("image-segmentation", "subtask", "panoramic"),
        ("image-segmentation", "threshold", 1.5),
        ("image-segmentation", "mask_threshold", -0.1),
        ("image-segmentation", "overlap_mask_area_threshold", 2),
        ("object-detection", "threshold", "high"),
        ("mask-generation", "points_per_batch", 0),
        ("mask-generation", "points_per_crop", 129),
        ("mask-generation", "crops_n_layers", 4),
        ("mask-generation", "crop_overlap_ratio", 1.0),
        ("mask-generation", "mask_threshold", float("inf")),
        ("mask-generation", "crops_nms_thresh", -1),
        ("video-classification", "num_frames", 0),
        ("video-classification", "num_frames", 1025),
        ("video-classification", "frame_sampling_rate", 0),
        ("keypoint-matching", "threshold", 1.1),
        ("zero-shot-object-detection", "top_k", 0),
    ],
)
def test_limits(task: str, parameter: str, value: Any) -> None:
    inputs = [PICTURE, PICTURE] if task == "keypoint-matching" else PICTURE
    where, _ = fault(task, inputs, **TASKS.get(task, {}), **{parameter: value})
    assert where == f"parameters.{parameter}"


@pytest.mark.parametrize("task", ["zero-shot-image-classification", "zero-shot-object-detection"])
def test_candidate_labels(task: str) -> None:
    """They are needed, and are neither empty, nor too many, nor too long."""
    with pytest.raises(ValidationError, match=r"parameters\n.*Field required"):
        job_spec_adapter.validate_python({"task": task, "inputs": PICTURE, **KIND})
    assert fault(task)[0] == "parameters.candidate_labels"
    assert fault(task, candidate_labels=[])[0] == "parameters.candidate_labels"
    assert fault(task, candidate_labels=["cat", ""])[0] == "parameters.candidate_labels.1"
    assert fault(task, candidate_labels=["cat"] * (MAX_CANDIDATE_LABELS + 1))[0] == "parameters.candidate_labels"
    too_long = "c" * (MAX_LABEL_CHARACTERS + 1)
    assert fault(task, candidate_labels=["cat", too_long])[0] == "parameters.candidate_labels.1"


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{:>9999999}", "{x} {}", "{}}"])
def test_a_template_has_one_place_for_the_label(template: str) -> None:
    where, what = fault("zero-shot-image-classification", **LABELS, hypothesis_template=template)
    assert where == "parameters.hypothesis_template"
    assert "`{}` once" in what


def test_grids_of_other_sizes() -> None:
    """The library stacks the points of all crops."""
    assert spec("mask-generation", crop_n_points_downscale_factor=2).parameters.crop_n_points_downscale_factor == 2
    where, what = fault("mask-generation", crops_n_layers=1, crop_n_points_downscale_factor=2)
    assert where == "parameters"
    assert "`crop_n_points_downscale_factor` must be 1" in what


def test_vectors_of_every_patch_are_for_few_images() -> None:
    """A pooled vector is small."""
    many = [PICTURE] * (MAX_UNPOOLED_INPUTS + 1)
    assert spec("image-feature-extraction", many[1:]).parameters.pool is None
    assert len(spec("image-feature-extraction", many, pool=True).inputs) == len(many)
    where, what = fault("image-feature-extraction", many)
    assert where == ""
    assert "set `pool`" in what


def test_images_times_labels() -> None:
    """Every label is looked for in every image by a forward of its own."""
    labels = [f"thing {place}" for place in range(MAX_CANDIDATE_LABELS)]
    images = [PICTURE] * (MAX_PAIRS // MAX_CANDIDATE_LABELS + 1)
    assert len(spec("zero-shot-object-detection", images[1:], candidate_labels=labels).inputs) == len(images) - 1
    where, what = fault("zero-shot-object-detection", images, candidate_labels=labels)
    assert where == ""
    assert "send several jobs" in what


class TestPairs:
    """Keypoint matching takes pairs of images: named or not, one or many."""

    @pytest.mark.parametrize("pair", [[PICTURE, PICTURE], {"images": [PICTURE, PICTURE]}], ids=["short", "named"])
    def test_one_pair_or_many(self, pair: Any) -> None:
        one, many = spec("keypoint-matching", pair), spec("keypoint-matching", [pair, pair, pair])
        assert one.inputs.images == (PICTURE, PICTURE)
        assert [item.images for item in many.inputs] == [(PICTURE, PICTURE)] * 3

    def test_a_spec_reads_what_it_writes(self) -> None:
        for inputs in ([PICTURE, PICTURE], [[PICTURE, PICTURE]], [[PICTURE, PICTURE], [PICTURE, PICTURE]]):
            made = spec("keypoint-matching", inputs)
            assert job_spec_adapter.validate_json(made.model_dump_json()) == made

    @pytest.mark.parametrize(
        "inputs", [PICTURE, [PICTURE], [PICTURE] * 3, [[PICTURE]], [[PICTURE] * 3], {"images": [PICTURE]}, [], {}]
    )
    def test_other_numbers_of_images_are_refused(self, inputs: Any) -> None:
        with pytest.raises(ValidationError, match="inputs"):
            spec("keypoint-matching", inputs)

    def test_a_url_is_refused_where_it_stands(self) -> None:
        with pytest.raises(ValidationError, match="URLs are not fetched"):
            spec("keypoint-matching", [[PICTURE, "https://example.org/a.png"]])

    def test_uploads_are_found_in_it(self) -> None:
        """Submission puts every input into the artifact store, and names the field of one that is missing."""
        found: list[str] = []

        def note(media: Media, param: str) -> Media:
            found.append(param)
            return media

        replace_media(spec("keypoint-matching", [[PICTURE, PICTURE]]).inputs, note, "inputs")
        assert found == ["inputs[0].images[0]", "inputs[0].images[1]"]


@pytest.mark.parametrize(
    ("task", "asked"),
    [
        (
            "image-classification",
            hub.ImageClassificationInput(
                inputs=PICTURE, parameters=hub.ImageClassificationParameters(function_to_apply="sigmoid", top_k=3)
            ),
        ),
        (
            "image-segmentation",
            hub.ImageSegmentationInput(
                inputs=PICTURE,
                parameters=hub.ImageSegmentationParameters(
                    mask_threshold=0.4, overlap_mask_area_threshold=0.3, subtask="semantic", threshold=0.8
                ),
            ),
        ),
        ("image-to-image", hub.ImageToImageInput(inputs=PICTURE, parameters=hub.ImageToImageParameters())),
        (
            "object-detection",
            hub.ObjectDetectionInput(inputs=PICTURE, parameters=hub.ObjectDetectionParameters(threshold=0.8)),
        ),
        ("depth-estimation", hub.DepthEstimationInput(inputs=PICTURE, parameters={})),
        (
            "video-classification",
            hub.VideoClassificationInput(
                inputs=PICTURE,
                parameters=hub.VideoClassificationParameters(
                    frame_sampling_rate=2, function_to_apply="none", num_frames=16, top_k=3
                ),
            ),
        ),
        (
            "zero-shot-image-classification",
            hub.ZeroShotImageClassificationInput(
                inputs=PICTURE,
                parameters=hub.ZeroShotImageClassificationParameters(
                    candidate_labels=["cat", "dog"], hypothesis_template="a {}"
                ),
            ),
        ),
        (
            "zero-shot-object-detection",
            hub.ZeroShotObjectDetectionInput(
                inputs=PICTURE, parameters=hub.ZeroShotObjectDetectionParameters(candidate_labels=["cat", "dog"])
            ),
        ),
    ],
)
def test_huggingface_hubs_own_types(task: str, asked: Any) -> None:
    """Their fields are ours, with the same values."""
    wanted = {name: value for name, value in (dataclasses.asdict(asked)["parameters"]).items() if value is not None}
    made = spec(task, asked.inputs, **wanted)
    parameters = made.parameters.model_dump(mode="json")
    assert {name: parameters[name] for name in wanted} == wanted


def test_prompts_are_for_other_models() -> None:
    """What huggingface_hub knows for diffusion models is refused, not ignored."""
    assert fault("image-to-image", prompt="make it night")[0] == "parameters.prompt"
