"""Reads the images, sounds and videos of a job's inputs out of the artifact store."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tandem.errors import InvalidRequest, UnknownArtifact
from tandem.specs import Media
from worker.media.audio import read_audio
from worker.media.image import read_image
from worker.media.limits import MediaLimits
from worker.media.video import read_video, read_video_frames


class MediaReader:
    """Decodes what a spec names. Every method raises InvalidRequest naming `param`: broken, too large, gone."""

    def __init__(self, read: Callable[[str], bytes], limits: MediaLimits) -> None:
        """`read` gives a blob by its SHA-256, or raises UnknownArtifact."""
        self._read = read
        self._limits = limits

    def image(self, media: Media, param: str) -> Image.Image:
        """RGB."""
        return read_image(self.content(media, param), self._limits, param=param)

    def audio(self, media: Media, param: str, *, sampling_rate: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Mono samples at `sampling_rate` (1/s), [samples]."""
        return read_audio(self.content(media, param), self._limits, sampling_rate=sampling_rate, param=param)

    def video(
        self, media: Media, param: str, *, frames: int, frame_sampling_rate: int
    ) -> "list[np.ndarray[Any, np.dtype[np.uint8]]]":
        """RGB frames [height, width, 3], as the video-classification pipeline samples them."""
        content = self.content(media, param)
        return read_video(content, self._limits, frames=frames, frame_sampling_rate=frame_sampling_rate, param=param)

    def video_frames(
        self, media: Media, param: str, *, max_frames: int
    ) -> "tuple[list[np.ndarray[Any, np.dtype[np.uint8]]], float]":
        """Up to `max_frames` evenly spaced RGB frames [height, width, 3], and the frames a second of the video."""
        return read_video_frames(self.content(media, param), self._limits, max_frames=max_frames, param=param)

    def content(self, media: Media, param: str) -> bytes:
        digest = Media(media).artifact
        if digest is None:
            # A spec that did not come through Submission, such as a test's.
            return Media(media).content()
        try:
            return self._read(digest)
        except UnknownArtifact as error:
            raise InvalidRequest(
                f"the content of `{param}` is gone from the artifact store; send it again", param=param
            ) from error
