"""The rows of training files: the shapes that each task learns from."""

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from tandem.specs.base import MAX_INPUT_CHARACTERS, Spec, Text
from tandem.specs.generation import MAX_MESSAGES, ChatMessage
from tandem.specs.tools import MAX_TOOLS, Tool

MAX_LABEL_CHARACTERS = 256
"""A label is a name; texts that long are answers, which a language model learns."""
MAX_ROW_WORDS = 65_536
"""Words in one row of tagged words: no encoder reads further."""
MAX_ANSWERS = 64
"""Answers to one question: SQuAD's annotators gave up to six."""

# For text-generation: OpenAI's chat, a prompt with its completion, and plain text.


class ChatRowMessage(ChatMessage):
    """A message of a conversation that is learned."""

    weight: Literal[0, 1] = 1
    """0: of this answer nothing is learned (OpenAI's field)."""

    @model_validator(mode="after")
    def _weighs_an_answer(self) -> "ChatRowMessage":
        if self.weight == 0 and self.role != "assistant":
            raise ValueError(f"`weight` is of the assistant's messages; this one is of the role {self.role!r}")
        return self


def _is_an_answer(message: ChatMessage) -> bool:
    return message.role == "assistant" and bool(message.content.strip() or message.tool_calls)


class ChatRow(Spec):
    """A conversation; the loss is on what the assistant says."""

    messages: tuple[ChatRowMessage, ...] = Field(min_length=2, max_length=MAX_MESSAGES)
    tools: tuple[Tool, ...] = Field(default=(), max_length=MAX_TOOLS)
    """The functions that the assistant may call; the chat template tells the model of them, as in serving."""
    parallel_tool_calls: bool | None = None
    """Not used: OpenAI's files have it."""

    @field_validator("messages")
    @classmethod
    def _has_an_answer(cls, messages: tuple[ChatRowMessage, ...]) -> tuple[ChatRowMessage, ...]:
        if not _is_an_answer(messages[-1]):
            raise ValueError("the last message must be the assistant's and not empty: it is what is learned")
        if not any(message.role == "assistant" and message.weight for message in messages[1:]):
            raise ValueError("every answer has the weight 0, so there is nothing to learn")
        return messages


class CompletionRow(Spec):
    """A prompt and its completion; the loss is on the completion."""

    prompt: str = Field(max_length=MAX_INPUT_CHARACTERS)
    completion: Text


class TextRow(Spec):
    """A text; the loss is on all of it."""

    text: Text


class PreferenceRow(Spec):
    """A prompt, an answer to it that is preferred, and one that is not: what DPO learns from.

    All three are texts, or all three conversations. Also read in OpenAI's shape: `input` with its `messages`,
    `preferred_output` and `non_preferred_output`.
    """

    prompt: str | tuple[ChatMessage, ...]
    chosen: Text | tuple[ChatMessage, ...]
    rejected: Text | tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = Field(default=(), max_length=MAX_TOOLS)

    @model_validator(mode="before")
    @classmethod
    def _from_openais_shape(cls, row: Any) -> Any:
        if not isinstance(row, dict) or "input" not in row:
            return row
        asked = row["input"]
        if not isinstance(asked, dict) or "messages" not in asked:
            raise ValueError("`input` must have `messages`")
        names = {"preferred_output": "chosen", "non_preferred_output": "rejected"}
        renamed = {names.get(name, name): value for name, value in row.items() if name != "input"}
        return {**renamed, "prompt": asked["messages"], "tools": asked.get("tools") or ()}

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> "PreferenceRow":
        if len({isinstance(part, str) for part in (self.prompt, self.chosen, self.rejected)}) > 1:
            raise ValueError("`prompt`, `chosen` and `rejected` must all be texts, or all lists of messages")
        if isinstance(self.prompt, tuple) and not self.prompt:
            raise ValueError("`prompt` has no message")
        for name, part in (("chosen", self.chosen), ("rejected", self.rejected)):
            if isinstance(part, tuple) and (len(part) != 1 or not _is_an_answer(part[0])):
                raise ValueError(f"`{name}` must be one message, the assistant's, and not empty")
        if self.chosen == self.rejected:
            raise ValueError("`chosen` and `rejected` are the same, so neither can be preferred")
        return self


# For the tasks with a head of their own, the shapes that most data sets of the hub have.


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Label = Annotated[str, BeforeValidator(_number_as_text), Field(min_length=1, max_length=MAX_LABEL_CHARACTERS)]
"""A class's name; a whole number is the name that its digits make."""


class TextClassificationRow(Spec):
    """A text, or a pair of them, and its label."""

    text: Text
    text_pair: Text | None = None
    label: Label


class TokenClassificationRow(Spec):
    """The words of a sentence and a tag for each: `O`, `B-…` and `I-…` for entities, or any others."""

    tokens: tuple[Text, ...] = Field(min_length=1, max_length=MAX_ROW_WORDS)
    tags: tuple[Label, ...] = Field(validation_alias=AliasChoices("tags", "ner_tags"))
    id: Any = None
    """Not used: data sets have it."""

    @field_validator("tags")
    @classmethod
    def _one_a_word(cls, tags: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        tokens = info.data.get("tokens", tags)  # absent where they are at fault themselves
        if len(tags) != len(tokens):
            raise ValueError(f"there must be one for each of the {len(tokens)} tokens, and there are {len(tags)}")
        return tags


class Answers(Spec):
    """SQuAD's answers to one question, each with the place of its first character in the context; maybe none."""

    text: tuple[Text, ...] = Field(max_length=MAX_ANSWERS)
    answer_start: tuple[Annotated[int, Field(ge=0)], ...]

    @field_validator("answer_start")
    @classmethod
    def _one_a_text(cls, starts: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        texts = info.data.get("text", starts)
        if len(starts) != len(texts):
            raise ValueError(f"there must be one for each of the {len(texts)} texts, and there are {len(starts)}")
        return starts


class QuestionAnsweringRow(Spec):
    """A question and the context that holds its answer; with empty lists, one that the context does not answer.

    The first answer is learned; an evaluation takes any of them.
    """

    question: Text
    context: Text
    answers: Answers
    id: Any = None
    """Not used: SQuAD has it, and a title."""
    title: Any = None

    @field_validator("answers")
    @classmethod
    def _stand_in_the_context(cls, answers: Answers, info: ValidationInfo) -> Answers:
        context = info.data.get("context")
        for text, start in zip(answers.text, answers.answer_start, strict=True):
            if not text.strip():
                raise ValueError("an answer must have more than white space")
            if context is not None and context[start : start + len(text)] != text:
                found = context[start : start + len(text)]
                raise ValueError(f"{text!r} does not stand at character {start} of the context: {found!r} does")
        return answers


# For encoder-decoders, a text and what is to be written for it.

SOURCE_NAMES = ("input", "source", "document", "article", "dialogue", "text")
"""What data sets call the text that is read: the first is ours."""
TARGET_NAMES = ("target", "summary", "highlights")
"""What they call the text that is written for it."""


class TextToTextRow(Spec):
    """A text, and the text that is to be written for it; the loss is on the latter.

    Also read under the names that the hub's data sets have for them: see SOURCE_NAMES and TARGET_NAMES.
    """

    input: Text = Field(validation_alias=AliasChoices(*SOURCE_NAMES))
    target: Text = Field(validation_alias=AliasChoices(*TARGET_NAMES))
    id: Any = None
    """Not used: data sets have it."""


# For embeddings, texts that belong together.

ANCHOR_NAMES = ("anchor", "query", "question")
"""What sentence-transformers' data sets call the text that is asked with: the first is ours."""
POSITIVE_NAMES = ("positive", "answer")
"""What they call the text that belongs to it."""


class AnchorRow(Spec):
    """A text, one whose embedding is to be near its own, and maybe one whose embedding is not to be.

    Also read under the names of sentence-transformers' data sets: see ANCHOR_NAMES and POSITIVE_NAMES.
    """

    anchor: Text = Field(validation_alias=AliasChoices(*ANCHOR_NAMES))
    positive: Text = Field(validation_alias=AliasChoices(*POSITIVE_NAMES))
    negative: Text | None = None
    """Beside the positives of the other rows of a batch, from which an anchor is told apart anyway."""
    id: Any = None
    """Not used: data sets have it."""


TrainingRow = (
    ChatRow
    | CompletionRow
    | TextRow
    | PreferenceRow
    | TextClassificationRow
    | TokenClassificationRow
    | QuestionAnsweringRow
    | TextToTextRow
    | AnchorRow
)
