"""Conversations with images, sounds and videos in them, in the forms of transformers and of OpenAI."""

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, model_validator

from tandem.specs.base import MAX_INPUT_CHARACTERS, Spec
from tandem.specs.media import Media

MAX_MESSAGES = 2048
"""Messages in one conversation."""
MAX_PARTS = 256
"""Parts of one message: texts, images, sounds and videos."""


class TextPart(Spec):
    type: Literal["text"]
    text: str = Field(max_length=MAX_INPUT_CHARACTERS)


class ImagePart(Spec):
    """transformers' form; it may call the image `url` or `base64` too."""

    model_config = ConfigDict(validate_by_name=True)

    type: Literal["image"]
    image: Media = Field(validation_alias=AliasChoices("image", "url", "base64"))


class ImageUrl(Spec):
    url: Media
    """A `data:` URL, or what else names an image: other URLs are not fetched."""
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Taken for OpenAI's sake; the model decides at which size it looks."""


class ImageUrlPart(Spec):
    """OpenAI's form."""

    type: Literal["image_url"]
    image_url: ImageUrl | Media


class AudioPart(Spec):
    """transformers' form; it may call the sound `url` too."""

    model_config = ConfigDict(validate_by_name=True)

    type: Literal["audio"]
    audio: Media = Field(validation_alias=AliasChoices("audio", "url"))


class InputAudio(Spec):
    data: Media
    format: str | None = Field(default=None, max_length=32)
    """Taken for OpenAI's sake; the content tells its format by itself."""


class InputAudioPart(Spec):
    """OpenAI's form."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class VideoPart(Spec):
    """transformers' form; it may call the video `url` too."""

    model_config = ConfigDict(validate_by_name=True)

    type: Literal["video"]
    video: Media = Field(validation_alias=AliasChoices("video", "url"))


SeenPart = Annotated[TextPart | ImagePart | ImageUrlPart, Field(discriminator="type")]
"""What a model of images and texts takes."""
Part = Annotated[
    TextPart | ImagePart | ImageUrlPart | AudioPart | InputAudioPart | VideoPart, Field(discriminator="type")
]


class Message(Spec):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[str, Field(max_length=MAX_INPUT_CHARACTERS)]
        | Annotated[tuple[Part, ...], Field(min_length=1, max_length=MAX_PARTS)]
    )


class SeenMessage(Message):
    """One turn of a conversation about images."""

    content: (
        Annotated[str, Field(max_length=MAX_INPUT_CHARACTERS)]
        | Annotated[tuple[SeenPart, ...], Field(min_length=1, max_length=MAX_PARTS)]
    )


class Conversation(Spec):
    """Messages in order. If the last is the assistant's, the model goes on with it."""

    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=MAX_MESSAGES)]

    @model_validator(mode="after")
    def _can_be_continued(self) -> Self:
        last = self.messages[-1]
        if last.role == "assistant" and not isinstance(last.content, str) and last.content[-1].type != "text":
            raise ValueError("the model goes on with the assistant's last message, which must end with a text")
        return self


class SeenConversation(Conversation):
    """The same about images alone."""

    messages: Annotated[tuple[SeenMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]


def media_of(part: Part) -> tuple[Literal["image", "audio", "video"], Media, str] | None:
    """Of a part that is no text: what kind it is, its content, and the path to it from the part."""
    match part:
        case TextPart():
            return None
        case ImagePart():
            return "image", part.image, "image"
        case ImageUrlPart(image_url=ImageUrl() as image):
            return "image", image.url, "image_url.url"
        case ImageUrlPart(image_url=Media() as image):
            return "image", image, "image_url"
        case AudioPart():
            return "audio", part.audio, "audio"
        case InputAudioPart():
            return "audio", part.input_audio.data, "input_audio.data"
        case VideoPart():
            return "video", part.video, "video"
    raise TypeError(f"not a part of a message: {part!r}")


def _conversations(inputs: Any) -> Any:
    """Bare lists of messages as conversations: one in place of the inputs, or some among them."""
    if _is_messages(inputs):
        return {"messages": inputs}
    if isinstance(inputs, list | tuple):
        return [{"messages": item} if _is_messages(item) else item for item in inputs]
    return inputs


def _is_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_says_role(item) for item in value)


def _says_role(item: Any) -> bool:
    return isinstance(item, Message) or (isinstance(item, dict) and "role" in item)


BareConversations = BeforeValidator(_conversations)
"""Takes messages as both libraries do, in a plain list."""
