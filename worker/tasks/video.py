"""Tasks on videos."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tandem.errors import InvalidModel, InvalidRequest
from tandem.specs import Media
from tandem.specs.vision import VideoClassificationParameters
from worker.media.reader import MediaReader
from worker.tasks.batched_task import Pause
from worker.tasks.pipeline_task import PipelinePiece, PipelineTask, refusals_named


@dataclass(frozen=True, slots=True)
class Video:
    """A video yet to be decoded: which frames are wanted stands in the parameters."""

    value: Media
    media: MediaReader
    param: str


class VideoClassification(PipelineTask[VideoClassificationParameters]):
    """The labels of a video, by frames from its beginning."""

    unit = "pixels"

    def __init__(self, pipeline: Any) -> None:
        if pipeline.video_processor is not None:
            raise InvalidModel(
                f"{pipeline.model.config.model_type} reads videos by a video processor of transformers, which "
                "decodes them by itself, past the limits set here; choose a model with an image processor, such as "
                "VideoMAE, ViViT or TimeSformer",
                param="model",
            )
        super().__init__(pipeline)

    def read(self, value: Media, media: MediaReader, param: str) -> Video:
        return Video(value, media, param)

    def _pieces(self, value: Video, parameters: VideoClassificationParameters, name: str) -> list[PipelinePiece]:
        preprocess, forward, postprocess = self._all_options(parameters)
        frames = value.media.video(
            value.value,
            value.param,
            frames=preprocess.get("num_frames") or self.pipeline.model.config.num_frames,
            frame_sampling_rate=preprocess.get("frame_sampling_rate", 1),
        )
        with refusals_named(name):
            # As the pipeline's own preprocessing goes on when it has opened a file by its name.
            inputs = self.pipeline.image_processor(frames, return_tensors="pt").to(self.pipeline.dtype)
        return [self._piece(inputs, forward, postprocess)]

    def forward(self, pieces: Sequence[PipelinePiece], pause: Pause) -> Sequence[Any]:
        try:
            return super().forward(pieces, pause)
        except (ValueError, RuntimeError) as error:
            # Some models take other numbers of frames than they were made for, and some stumble over them.
            frames, made_for = pieces[0].model_inputs["pixel_values"].shape[1], self.pipeline.model.config.num_frames
            if frames == made_for:
                raise
            raise InvalidRequest(
                f"the model was made for {made_for} frames and cannot use `parameters.num_frames` = {frames}; leave "
                f"it out ({error})",
                param="parameters.num_frames",
            ) from error
