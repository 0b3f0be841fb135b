"""How large an image, a sound or a video may be once it is decoded: a small file can unpack to any size."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MediaLimits:
    """Refused above: checked from the header where it tells, and while decoding always, for a header may lie."""

    image_pixels: int = 50_000_000
    """Width x height of one image. The default holds what cameras make; it takes about 400 MB while converted, as
    Pillow keeps 4 bytes a pixel and the decoded and the RGB image stand side by side."""

    audio_seconds: float = 3600.0
    """Length of one sound in seconds. The default takes 230 MB as 32-bit samples at 16 kHz."""

    video_seconds: float = 600.0
    """How far into one video decoding may go, in seconds: what is decoded is what costs."""

    video_pixels: int = 3840 * 2160
    """Width x height of one frame of a video. The default, 4K, takes 25 MB for each RGB frame kept."""
