"""Images of users become what transformers would load; bombs and broken ones are refused by name."""

import io
import resource
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from tandem.errors import InvalidRequest
from worker.media.image import read_image
from worker.media.limits import MediaLimits

LIMITS = MediaLimits()
ORIENTATION = 0x0112
"""The EXIF tag."""


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint16).reshape(size[1], size[0]) * 50)
    return image.convert(mode)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def zeros_as_zlib(rows: int, row_bytes: int) -> bytes:
    """What `zlib.compress(bytes(rows * row_bytes))` unpacks to, from one packed part that stands in it 100 times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    part = packer.compress(bytes(rows // 100 * row_bytes)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = rows * row_bytes % 65_521 << 16 | 1
    return b"\x78\xda" + part * 100 + packer.flush() + struct.pack(">I", checksum)


def assert_as_transformers(content: bytes) -> None:
    mine = read_image(content, LIMITS, param="inputs")
    with warnings.catch_warnings():
        # What Pillow says of palettes with transparency when transformers converts one.
        warnings.filterwarnings("ignore", message="Palette images with Transparency")
        theirs = load_image(Image.open(io.BytesIO(content)))
    assert mine.mode == "RGB"
    assert type(mine) is Image.Image
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_each_format_gives_the_pixels_that_transformers_loads(kind: str) -> None:
    assert_as_transformers(saved(picture(), kind))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[(mode, "PNG") for mode in ("1", "L", "LA", "P", "RGBA", "I;16")],
        *[(mode, "JPEG") for mode in ("L", "CMYK")],
        *[(mode, "TIFF") for mode in ("F", "CMYK", "I;16", "LAB")],
    ],
)
def test_each_mode_becomes_rgb_as_in_transformers(mode: str, kind: str) -> None:
    assert_as_transformers(saved(picture(mode), kind))


def test_a_palette_with_transparent_colours_warns_of_nothing() -> None:
    """Every warning is an error in these tests."""
    assert_as_transformers(saved(picture("P"), "PNG", transparency=bytes([0, 128, 255])))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = saved(picture(), kind, exif=exif)
    assert_as_transformers(content)
    turned = (30, 40) if orientation >= 5 else (40, 30)
    assert read_image(content, LIMITS, param="inputs").size == turned


def test_of_an_animation_the_first_frame_is_taken() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    content = saved(first, "GIF", save_all=True, append_images=[second])
    assert read_image(content, LIMITS, param="inputs").getpixel((0, 0)) == (255, 0, 0)


def test_an_image_of_exactly_the_limit_is_read_and_one_pixel_more_is_not() -> None:
    limits = MediaLimits(image_pixels=40 * 30)
    assert read_image(saved(picture(), "PNG"), limits, param="inputs").size == (40, 30)
    with pytest.raises(
        InvalidRequest, match=r"`inputs\[2\]` has 1,230 pixels \(41 x 30\); the limit is 1,200"
    ) as refusal:
        read_image(saved(picture(size=(41, 30)), "PNG"), limits, param="inputs[2]")
    assert refusal.value.param == "inputs[2]"


def test_a_bomb_is_refused_without_memory_for_its_pixels() -> None:
    """60,000 x 60,000 pixels of one colour: a file of 3.5 MB that unpacks to 3.6 GB."""
    content = png_of(60_000, 60_000, chunk(b"IDAT", zeros_as_zlib(60_000, 60_001)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequest, match=r"3,600,000,000 pixels \(60,000 x 60,000\); the limit is 50,000,000"):
        read_image(content, LIMITS, param="inputs")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000, "kilobytes"


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind the pixels"])
def test_a_text_that_unpacks_to_much_is_refused(behind: bool) -> None:
    bomb = chunk(b"zTXt", b"title\0\0" + zlib.compress(bytes(100_000_000), 9))
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 9)))
    content = png_of(8, 8, *([pixels, bomb] if behind else [bomb, pixels]))
    with pytest.raises(InvalidRequest, match=r"Decompressed data too large"):
        read_image(content, LIMITS, param="inputs")


def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused() -> None:
    content = bytearray(saved(picture("P"), "GIF"))
    place = content.index(b"\x2c\x00\x00\x00\x00" + struct.pack("<HH", 40, 30))
    content[place + 5 : place + 9] = struct.pack("<HH", 65_535, 65_535)
    with pytest.raises(InvalidRequest, match=r"too large to be opened .*4294836225 pixels.*limit is 50,000,000"):
        read_image(bytes(content), LIMITS, param="inputs")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "`inputs` is empty; send a PNG, JPEG"),
        (b"hello", "not an image that is read here"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that is read here"),
        (b"\x89PNG\r\n\x1a\n", "damaged or cut short"),
    ],
    ids=["empty", "text", "a format that starts a program", "signature alone"],
)
def test_what_is_no_image_is_refused_by_name(content: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refusal:
        read_image(content, LIMITS, param="inputs")
    assert refusal.value.param == "inputs"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    content = saved(picture(), kind)
    for kept in (len(content) // 2, 20):
        with pytest.raises(InvalidRequest, match="damaged or cut short"):
            read_image(content[:kept], LIMITS, param="inputs")


def test_a_worker_prints_no_warning_of_pillow_and_leaves_its_limit_alone() -> None:
    """In a process of its own, because pytest sets the filters anew for each test."""
    script = """
import io, sys
from PIL import Image
limit = Image.MAX_IMAGE_PIXELS
from worker.media.image import read_image
from worker.media.limits import MediaLimits
file = io.BytesIO()
Image.new("L", (10_000, 9_000)).save(file, "PNG", exif=b"Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x05\\0")
image = read_image(file.getvalue(), MediaLimits(image_pixels=90_000_000), param="inputs")
assert image.size == (10_000, 9_000) and Image.MAX_IMAGE_PIXELS == limit
"""
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
