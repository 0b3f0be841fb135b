"""image-text-to-text and any-to-any: a model goes on with a conversation, or with a prompt about images or sounds."""

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch import nn
from transformers.pipelines import any_to_any
from transformers.utils import chat_template_utils

from tandem.errors import InvalidRequest
from tandem.specs import Media
from tandem.specs.conversation import Conversation, Message, media_of
from tandem.specs.multimodal import AnyToAnyParameters, ConversationParameters, ImagePrompt, MediaPrompt
from worker.media.encode import PNG, WAV, png, wav
from worker.media.reader import MediaReader
from worker.tasks.generating_task import NestedGeneratingTask, require_places, with_written_cost, writing_positions
from worker.tasks.pipeline_task import PipelinePiece
from worker.tasks.positions import TABLES
from worker.tasks.prompt_batch import join_prompts
from worker.tasks.result_files import ResultFiles

VIDEO_FRAMES = 32
"""Frames that a video is seen by if the job does not say: a few seconds at the rates that models are trained with."""
DEFAULT_SPEECH_RATE = 24_000
"""Samples a second of what Qwen-Omni's vocoder speaks; its configuration does not say so, other models' do."""

ParametersT = TypeVar("ParametersT", bound=ConversationParameters)


@dataclass(frozen=True, slots=True)
class Asked:
    """An input, yet to be decoded: how many frames of a video are wanted stands in the parameters."""

    value: Conversation | ImagePrompt | MediaPrompt
    media: MediaReader
    param: str


class ConversationTask(NestedGeneratingTask[ParametersT]):
    """What a model writes. A row holds the messages as they were sent, not the decoded images.

    Prompts of different lengths share a forward where the model computes its positions: it does not mind then where
    in a row the text begins. Their images and sounds must have equal sizes.
    """

    chat: ClassVar[Any] = chat_template_utils.Chat
    """What the pipeline takes a list of messages in."""

    def __init__(self, pipeline: Any) -> None:
        config, tokenizer = pipeline.model.config, pipeline.tokenizer
        is_decoder = not config.is_encoder_decoder
        if is_decoder and tokenizer is not None:
            # A decoder goes on from the right end of its row, whatever side the tokenizer was saved with.
            tokenizer.padding_side = "left"
        super().__init__(pipeline)
        self._places = writing_positions(pipeline.model)
        self._pads = not _looks_up_positions(pipeline.model.get_decoder()) if is_decoder else _pads_right(tokenizer)
        if tokenizer is not None and tokenizer.pad_token_id is not None:
            self._collate = join_prompts(pad_token_id=tokenizer.pad_token_id, side=tokenizer.padding_side)

    def read(self, value: Conversation | ImagePrompt | MediaPrompt, media: MediaReader, param: str) -> Asked:
        return Asked(value, media, param)

    def options(self, parameters: ParametersT) -> dict[str, Any]:
        options = super().options(parameters)
        if isinstance(options.get("stop_sequence"), tuple):
            options["stop_sequence"] = list(options["stop_sequence"])
        return options

    def _pieces(self, value: Asked, parameters: ParametersT, name: str) -> list[PipelinePiece]:
        asked, media, param = value.value, value.media, value.param
        if isinstance(asked, Conversation):
            messages = [
                self._message(message, media, f"{param}.messages[{place}]", parameters)
                for place, message in enumerate(asked.messages)
            ]
            [piece] = super()._pieces(self.chat(messages), parameters, name)
            # After the preprocessing, the library needs the messages only to put them into the result.
            piece.model_inputs["text"] = self.chat(_as_sent(asked))
        else:
            [piece] = super()._pieces(self._prompt(asked, media, param, parameters), parameters, name)
        require_places(self, piece, self._places, name)
        return [piece]

    def _piece(self, item: Any, forward: dict[str, Any], postprocess: dict[str, Any]) -> PipelinePiece:
        return with_written_cost(self, super()._piece(item, forward, postprocess))

    def _shape(self, value: Any, inputs: dict[str, Any]) -> str:
        return super()._shape(value, inputs if self._pads else {})

    def _message(self, message: Message, media: MediaReader, param: str, parameters: ParametersT) -> dict[str, Any]:
        if isinstance(message.content, str):
            return {"role": message.role, "content": message.content}
        parts = []
        for place, part in enumerate(message.content):
            found = media_of(part)
            if found is None:
                parts.append(part.model_dump())
                continue
            kind, content, path = found
            decoded = self._decoded(kind, content, media, f"{param}.content[{place}].{path}", parameters)
            parts.append({"type": kind, kind: decoded})
        return {"role": message.role, "content": parts}

    def _prompt(
        self, prompt: ImagePrompt | MediaPrompt, media: MediaReader, param: str, parameters: ParametersT
    ) -> str | dict[str, Any]:
        """The pipeline's other forms of an input: a text, or a dict with what stands beside it."""
        given: dict[str, Any] = {}
        for field, kind in (("images", "image"), ("videos", "video"), ("audio", "audio")):
            values = getattr(prompt, field, ())
            if isinstance(values, Media):
                given[field] = self._decoded(kind, values, media, f"{param}.{field}", parameters)
            elif values:
                given[field] = [
                    self._decoded(kind, value, media, f"{param}.{field}[{place}]", parameters)
                    for place, value in enumerate(values)
                ]
        return {**given, "text": prompt.text} if given else prompt.text

    def _decoded(self, kind: str, value: Media, media: MediaReader, param: str, parameters: ParametersT) -> Any:
        if kind not in self.pipeline.model.input_modalities:
            takes = ", ".join(self.pipeline.model.input_modalities)
            raise InvalidRequest(f"the model takes no {kind} (it takes: {takes}); leave out `{param}`", param=param)
        if kind == "image":
            return media.image(value, param)
        if kind == "audio":
            return media.audio(value, param, sampling_rate=self.pipeline.feature_extractor.sampling_rate)
        frames, _ = media.video_frames(
            value, param, max_frames=getattr(parameters, "num_frames", None) or VIDEO_FRAMES
        )
        return np.stack(frames)


class ImageTextToText(ConversationTask[ConversationParameters]):
    """A text about images."""


class AnyToAny(ConversationTask[AnyToAnyParameters]):
    """A text, an image or a sound, made of a conversation with any of these in it."""

    chat = any_to_any.Chat

    def options(self, parameters: AnyToAnyParameters) -> dict[str, Any]:
        options = super().options(parameters)
        options.pop("num_frames", None)
        if "video" in self.pipeline.model.input_modalities:
            # The frames have been chosen when the video was decoded.
            options["processor_kwargs"] = {"do_sample_frames": False}
        return options

    def present(self, result: Any, files: ResultFiles) -> Any:
        return super().present([self._stored(record, files) for record in result], files)

    def _stored(self, record: dict[str, Any], files: ResultFiles) -> dict[str, Any]:
        if "generated_image" in record:
            return {**record, "generated_image": files.add(png(record["generated_image"]), PNG)}
        if "generated_audio" in record:
            rate = _sampling_rate(self.pipeline.model.config.to_dict()) or DEFAULT_SPEECH_RATE
            stored = files.add(wav(np.asarray(record["generated_audio"]).squeeze(), rate), WAV)
            return {**record, "generated_audio": stored, "sampling_rate": rate}
        return record


def _looks_up_positions(decoder: nn.Module) -> bool:
    """Whether it has vectors for positions, so that it minds where in a row the text begins."""
    return any(name.split(".")[-1] in TABLES for name, _ in decoder.named_modules())


def _pads_right(tokenizer: Any) -> bool:
    return tokenizer is not None and tokenizer.padding_side == "right"


def _as_sent(conversation: Conversation) -> list[dict[str, Any]]:
    messages = [message.model_dump(mode="json", exclude_none=True) for message in conversation.messages]
    last = messages[-1]
    if last["role"] == "assistant" and isinstance(last["content"], str):
        # The library appends to the last part of a message that it goes on with.
        last["content"] = [{"type": "text", "text": last["content"]}]
    return messages


def _sampling_rate(config: dict[str, Any]) -> int | None:
    """The first rate that a configuration, or one in it, names for the sound that it makes."""
    for name in ("sampling_rate", "sample_rate"):
        if isinstance(config.get(name), int):
            return int(config[name])
    nested = (_sampling_rate(value) for value in config.values() if isinstance(value, dict))
    return next((rate for rate in nested if rate is not None), None)
