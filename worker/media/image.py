"""Decodes an image that a user sent into what `transformers.image_utils.load_image` would give."""

import io
import logging
import warnings

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from tandem.errors import InvalidRequest, OutOfMemory
from worker.media.limits import MediaLimits

# What Pillow decodes by itself, in C. Others it knows start a program (EPS) or open what they name (FPX, WMF).
# Importing a plugin registers it; Pillow would otherwise do so at a first call, with every other plugin.
_FORMATS = tuple(
    plugin.format
    for plugin in (
        PngImagePlugin.PngImageFile,
        JpegImagePlugin.JpegImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        AvifImagePlugin.AvifImageFile,
    )
)

_NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"

# Bytes that Pillow's plugins look at to know their format (`PIL.Image.open` reads as many).
_PREFIX_BYTES = 16

# Pillow warns of metadata that it cannot read and of large images. Neither is the operator's concern: the pixels are
# read all the same, and the size is checked here. Once for the process, because filters cannot be set for one thread.
warnings.filterwarnings("ignore", module=r"PIL\.")
# And it logs as an error what a broken file says of itself; who sent the file is told instead.
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def read_image(content: bytes, limits: MediaLimits, *, param: str) -> Image.Image:
    """The image as RGB, turned upright by its EXIF orientation, wholly decoded; an animation's first frame.

    Raises InvalidRequest naming `param`: empty, no image, of another format, damaged, or of more pixels than
    `limits.image_pixels`, which is checked before any pixel is decoded. Raises OutOfMemory.
    """
    if not content:
        raise InvalidRequest(f"`{param}` is empty; send a {_NAMES} image", param=param)
    try:
        image = _open(content)
        if image is None:
            raise InvalidRequest(f"`{param}` is not an image that is read here; send a {_NAMES} image", param=param)
        _check_pixels(image, limits, param)
        return _decode(image)
    except InvalidRequest:
        raise
    except MemoryError as error:
        raise OutOfMemory(f"there is not enough memory now to decode the image in `{param}`", param=param) from error
    except Image.DecompressionBombError as error:
        raise InvalidRequest(
            f"the image in `{param}` is too large to be opened ({error}); the limit is {limits.image_pixels:,} "
            "pixels: scale it down",
            param=param,
        ) from error
    except Exception as error:
        # Pillow's parsers let through whatever broken content makes them meet: KeyError, struct.error, EOFError ...
        raise InvalidRequest(
            f"the image in `{param}` is damaged or cut short ({error}); send the whole file again, or save it anew",
            param=param,
        ) from error


def _open(content: bytes) -> ImageFile.ImageFile | None:
    """The image with its header read; None if no format is recognised.

    `PIL.Image.open` does the same, but warns above a limit that is global to the process, and fails above twice that
    limit without telling the size.
    """
    prefix = content[:_PREFIX_BYTES]
    for name in _FORMATS:
        factory, accept = Image.OPEN[name]
        recognised = accept is None or accept(prefix)
        # A text says that Pillow was built without the library for this format.
        if recognised and not isinstance(recognised, str):
            return factory(io.BytesIO(content), "")
    return None


def _check_pixels(image: ImageFile.ImageFile, limits: MediaLimits, param: str) -> None:
    pixels = image.width * image.height
    if pixels > limits.image_pixels:
        raise InvalidRequest(
            f"the image in `{param}` has {pixels:,} pixels ({image.width:,} x {image.height:,}); the limit is "
            f"{limits.image_pixels:,}: scale it down",
            param=param,
        )


def _decode(image: ImageFile.ImageFile) -> Image.Image:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "P":
        # The transparent colours of a palette have no place in RGB; Pillow drops them as well, with a warning.
        image.info.pop("transparency", None)
    # Always a new image, which holds on to neither the file nor its plugin.
    return image.convert("RGB")
