"""Image-to-image on a tiny Swin2SR: there is no library's call any more, so the model's own use is the measure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Swin2SRForImageSuperResolution

from tests.golden.media_jobs import Asked, MediaJobs, sent
from tests.tiny_models import samples
from tests.tiny_models.swin2sr import build_swin2sr


@pytest.fixture(scope="module")
def swin2sr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model that doubles an image's sides."""
    return build_swin2sr(tmp_path_factory.mktemp("tiny-swin2sr"))


def enlarged(folder: Path, image: Image.Image) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """As the documentation of Swin2SRForImageSuperResolution uses it: [height, width, channels]."""
    model = Swin2SRForImageSuperResolution.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        output = model(**processor(image, return_tensors="pt")).reconstruction.squeeze().clamp_(0, 1).numpy()
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = (
        (np.moveaxis(output, 0, -1) * 255.0).round().astype("u1")
    )
    return pixels


def test_strangers_get_their_own_images(swin2sr: Path) -> None:
    """Images of one size share a forward, another size is another; a border up to the next 8 pixels stays."""
    jobs = MediaJobs("image-to-image", swin2sr)
    small = [samples.image(24, 20, seed=seed) for seed in range(3)]
    large = samples.image(40, 20)
    answers = jobs.run(Asked(sent(small)), Asked(sent(large)), Asked(sent(small[2])))
    assert jobs.forwards == 2
    for rows, images in zip(answers, [small, [large], small[2:]], strict=True):
        assert len(rows) == len(images)
        for row, image in zip(rows, images, strict=True):
            found, expected = np.asarray(jobs.opened(row)["image"], int), enlarged(swin2sr, image)
            assert found.shape == expected.shape == (48, 2 * (image.width // 8 + 1) * 8, 3)
            # One shade: a value beside a rounding's edge may fall on either side.
            assert np.abs(found - expected).max() <= 1


def test_a_model_of_another_kind(tiny_folder: Callable[[str], Path]) -> None:
    """It is refused when it is loaded, and not when its first image comes."""
    with pytest.raises(ValueError, match="needs Swin2SRForImageSuperResolution, not ViTForImageClassification"):
        MediaJobs("image-to-image", tiny_folder("tiny-vit"))
