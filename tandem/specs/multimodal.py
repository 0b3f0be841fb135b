"""Tasks on several kinds of input at once."""

from typing import Annotated, Literal, Self

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from tandem.specs.base import MAX_INPUT_CHARACTERS, MAX_INPUTS, MAX_NEW_TOKENS, InferenceBase, Spec, Text
from tandem.specs.conversation import BareConversations, Conversation, SeenConversation
from tandem.specs.document_question_answering import DocumentQuestionAnsweringSpec
from tandem.specs.generate_parameters import GenerateParameters
from tandem.specs.generation import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from tandem.specs.media import Media, MediaInputs

MAX_MEDIA = 256
"""Images, sounds or videos beside one text."""
MAX_VIDEO_FRAMES = 1024
"""Frames that one video of a conversation is seen by."""

SeveralMedia = Annotated[tuple[Media, ...], Field(max_length=MAX_MEDIA)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class ImageQuestion(Spec):
    """A question about an image."""

    image: Media
    question: Text


class VisualQuestionAnsweringParameters(Spec):
    padding: Literal["do_not_pad", "longest", "max_length"] | None = None
    top_k: int = Field(default=5, ge=1, le=10_000)
    truncation: bool | None = None
    """Cut a question that is longer than the model; by default it is refused."""


class VisualQuestionAnsweringSpec(InferenceBase):
    """Questions about images in, answers with scores out."""

    task: Literal["visual-question-answering"]
    inputs: ImageQuestion | Annotated[tuple[ImageQuestion, ...], Field(min_length=1, max_length=MAX_INPUTS)]
    parameters: VisualQuestionAnsweringParameters = VisualQuestionAnsweringParameters()


class LengthAndGeneration(Spec):
    """How a text is written about what is seen or heard."""

    generation_parameters: GenerateParameters = GenerateParameters()
    max_new_tokens: int | None = Field(default=None, ge=1, le=MAX_NEW_TOKENS)
    """The same as `generation_parameters.max_new_tokens`: 256 by default."""

    @model_validator(mode="after")
    def _says_length_once(self) -> Self:
        if self.max_new_tokens is not None and self.generation_parameters.max_new_tokens is not None:
            raise ValueError("`max_new_tokens` stands here and in `generation_parameters`: give one")
        return self


class ImageToTextParameters(LengthAndGeneration):
    prompt: Text | None = None
    """How the text begins (BLIP, GIT), or a question that is drawn over the image (Pix2Struct)."""


class ImageToTextSpec(InferenceBase):
    """Images in, what is seen or written in them out."""

    task: Literal["image-to-text"]
    inputs: MediaInputs
    parameters: ImageToTextParameters = ImageToTextParameters()


class ImagePrompt(Spec):
    """A text with the model's own marks for its images, such as `<image>`, and the images."""

    model_config = ConfigDict(validate_by_name=True)

    images: Media | SeveralMedia = Field(default=(), validation_alias=AliasChoices("images", "image"))
    text: Text


class ConversationParameters(LengthAndGeneration):
    clean_up_tokenization_spaces: bool | None = None
    """Take out the spaces that the tokenizer put before punctuation."""
    continue_final_message: bool | None = None
    """Go on with the last message; by default if it is the assistant's."""
    return_full_text: bool | None = None
    """Put the prompt, or the whole conversation, before what is written; by default it is put there."""
    skip_special_tokens: bool | None = None
    """Leave marks such as the end of a turn out of the text; by default they are left out."""
    stop_sequence: StopString | Annotated[tuple[StopString, ...], Field(max_length=MAX_STOP_STRINGS)] | None = None
    """Writing ends after the first of these strings."""


SeenInput = SeenConversation | ImagePrompt


class ImageTextToTextSpec(InferenceBase):
    """Conversations with images in, or prompts; what the model writes out."""

    task: Literal["image-text-to-text"]
    inputs: Annotated[
        SeenInput | Annotated[tuple[SeenInput, ...], Field(min_length=1, max_length=MAX_INPUTS)], BareConversations
    ]
    parameters: ConversationParameters = ConversationParameters()


class MediaPrompt(Spec):
    """A text with the model's own marks for images, videos and sounds, and these."""

    model_config = ConfigDict(validate_by_name=True)

    text: str = Field(max_length=MAX_INPUT_CHARACTERS)
    images: Media | SeveralMedia = Field(default=(), validation_alias=AliasChoices("images", "image"))
    videos: Media | SeveralMedia = Field(default=(), validation_alias=AliasChoices("videos", "video"))
    audio: Media | SeveralMedia = ()


class AnyToAnyParameters(ConversationParameters):
    generation_mode: Literal["text", "image", "audio"] | None = None
    """What to make, of what the model can; text by default."""
    num_frames: int | None = Field(default=None, ge=1, le=MAX_VIDEO_FRAMES)
    """Frames to see a video by, evenly spaced (32)."""

    @model_validator(mode="after")
    def _full_text_is_text(self) -> Self:
        if self.generation_mode in ("image", "audio") and self.return_full_text is not None:
            raise ValueError(f"`return_full_text` has no meaning when `generation_mode` is {self.generation_mode}")
        return self


AnyInput = Conversation | MediaPrompt


class AnyToAnySpec(InferenceBase):
    """Conversations of texts, images, sounds and videos in; a text, image or sound out."""

    task: Literal["any-to-any"]
    inputs: Annotated[
        AnyInput | Annotated[tuple[AnyInput, ...], Field(min_length=1, max_length=MAX_INPUTS)], BareConversations
    ]
    parameters: AnyToAnyParameters = AnyToAnyParameters()


MultimodalSpec = (
    DocumentQuestionAnsweringSpec | VisualQuestionAnsweringSpec | ImageToTextSpec | ImageTextToTextSpec | AnyToAnySpec
)
