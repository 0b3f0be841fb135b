"""The rows of text-generation as tokens: which of them the model learns to say."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from tandem.errors import InvalidTrainingData
from tandem.specs import ChatMessage, ChatRow, CompletionRow
from tandem.specs.tools import Tool
from tandem.specs.training_rows import TextRow
from worker.tasks.prompts import TOOLS_MEMBER, spell_out, told
from worker.training.data import Example
from worker.training.loss import IGNORED_LABEL

GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\b")
"""Marks what the assistant says in a chat template: transformers' extension to Jinja."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a row's text that carries loss throughout or not at all."""

    text: str
    is_answer: bool


def encode_text(row: ChatRow | CompletionRow | TextRow, tokenizer: PreTrainedTokenizerBase) -> Example:
    """A row's tokens, with labels on what is learned of it: its answers, or all of a plain text.

    A chat is rendered by the tokenizer's own template, as when it is served, with its tools and calls; its answers
    are all of the assistant's messages, each with its end-of-turn token. A completion and a text get the
    end-of-sequence token, and so does their loss.

    Raises InvalidTrainingData for a chat that the template cannot render so that its answers can be told apart.
    """
    match row:
        case ChatRow():
            return _first_unlearned(_encode_chat(row, tokenizer))
        case CompletionRow():
            return _first_unlearned(
                _encode_plain([_Piece(row.prompt, False), _Piece(row.completion, True)], tokenizer)
            )
        case TextRow():
            return _first_unlearned(_encode_plain([_Piece(row.text, True)], tokenizer))


def encode_answer(
    prompt: str | Sequence[ChatMessage],
    answer: str | Sequence[ChatMessage],
    tools: Sequence[Tool],
    tokenizer: PreTrainedTokenizerBase,
) -> Example:
    """A prompt and one answer to it, both texts or both messages, with labels on that answer alone.

    Raises InvalidTrainingData as `encode_text` does.
    """
    if isinstance(prompt, str) and isinstance(answer, str):
        return _first_unlearned(_encode_plain([_Piece(prompt, False), _Piece(answer, True)], tokenizer))
    assert not isinstance(prompt, str)
    assert not isinstance(answer, str)
    conversation = _Conversation((*prompt, *answer), tools, tokenizer)
    return _first_unlearned(_encode_pieces(conversation.pieces({len(prompt)}), tokenizer))


def _first_unlearned(example: Example) -> Example:
    """The first token follows nothing, so nothing predicts it."""
    return Example(example.input_ids, (IGNORED_LABEL, *example.labels[1:]))


def _encode_plain(pieces: Sequence[_Piece], tokenizer: PreTrainedTokenizerBase) -> Example:
    example = _encode_pieces(pieces, tokenizer)
    # What the tokenizer puts before a plain prompt when it is served, it puts before it here.
    lead = _leading_special_tokens(tokenizer)
    end = () if tokenizer.eos_token_id is None else (cast("int", tokenizer.eos_token_id),)
    return Example((*lead, *example.input_ids, *end), (*(IGNORED_LABEL for _ in lead), *example.labels, *end))


def _leading_special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    bos = cast("int | None", tokenizer.bos_token_id)
    return (bos,) if bos is not None and tokenizer.encode("")[:1] == [bos] else ()


def _encode_chat(row: ChatRow, tokenizer: PreTrainedTokenizerBase) -> Example:
    conversation = _Conversation(row.messages, row.tools, tokenizer)
    answers = {
        index
        for index, message in enumerate(row.messages)
        # An assistant's first message answers nothing.
        if index > 0 and message.role == "assistant" and message.weight
    }
    all_count = all(message.weight for message in row.messages)
    if all_count and GENERATION_BLOCK.search(tokenizer.get_chat_template()):
        return conversation.by_generation_blocks()
    return _encode_pieces(conversation.pieces(answers), tokenizer)


class _Conversation:
    """Messages and tools as the model's chat template renders them, in training as in serving."""

    def __init__(
        self, messages: Sequence[ChatMessage], tools: Sequence[Tool], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Raises InvalidTrainingData for a tokenizer without a template."""
        if tokenizer.chat_template is None:
            raise InvalidTrainingData(
                "it is a chat, but the model's tokenizer has no chat template: send rows of prompt and completion"
            )
        self._messages = messages
        self._tokenizer = tokenizer
        self._tools = [tool.model_dump(mode="json", exclude_none=True) for tool in tools]
        template = tokenizer.get_chat_template()
        self._knows_calls = TOOLS_MEMBER in template
        self._knows_tools = re.search(r"\btools\b", template) is not None

    def by_generation_blocks(self) -> Example:
        """With loss on what stands in the template's own marks of what the assistant says."""
        encoded = self._apply(len(self._messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids, is_answer = encoded["input_ids"], encoded["assistant_masks"]
        labels = tuple(token if mask else IGNORED_LABEL for token, mask in zip(ids, is_answer, strict=True))
        return Example(tuple(ids), labels)

    def pieces(self, answers: set[int]) -> list[_Piece]:
        """The rendered conversation, cut at the start and the end of each of the messages `answers`.

        The template is run on each prefix of the conversation: with the generation prompt, just before an answer,
        and without it, just after. Each result must be a prefix of the whole: then what is learned is exactly what
        follows the prompt that serving renders. Raises InvalidTrainingData where that does not hold.
        """
        whole = self._text(len(self._messages))
        pieces: list[_Piece] = []
        position = 0
        for index in sorted(answers):
            prompt = self._text(index, add_generation_prompt=True)
            answered = _end_of_turn(self._text(index + 1), self._tokenizer)
            if not (whole.startswith(answered) and answered.startswith(prompt) and len(prompt) >= position):
                raise InvalidTrainingData(
                    f"message {index + 1} is rendered differently by the model's chat template when others follow "
                    "it, so its tokens cannot be told apart: split the conversation into rows that end with each "
                    "answer"
                )
            pieces.append(_Piece(whole[position : len(prompt)], False))
            pieces.append(_Piece(whole[len(prompt) : len(answered)], True))
            position = len(answered)
        # What the template puts after the last end of turn, such as a newline, comes after generation has stopped.
        return pieces

    def _text(self, messages: int, *, add_generation_prompt: bool = False) -> str:
        return cast("str", self._apply(messages, tokenize=False, add_generation_prompt=add_generation_prompt))

    def _apply(self, messages: int, **options: Any) -> Any:
        """Render the first `messages`. A template that knows no tools, or no calls, gets them as texts."""
        plain = [message.for_template() for message in self._messages[:messages]]
        calls = any(TOOLS_MEMBER in message for message in plain)
        if self._tools and not self._knows_tools:
            plain = told(self._tools, spell_out(plain))
        elif calls and not self._knows_calls:
            plain = spell_out(plain)
        if self._tools and self._knows_tools:
            options["tools"] = self._tools
        return _rendered(lambda: self._tokenizer.apply_chat_template(plain, **options))


def _end_of_turn(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`text` without the white space that follows its last special token, if nothing else follows it."""
    stripped = text.rstrip()
    return stripped if stripped.endswith(tuple(tokenizer.all_special_tokens)) else text


def _rendered(render: Callable[[], Any]) -> Any:
    try:
        return render()
    except TemplateError as error:
        raise InvalidTrainingData(f"the model's chat template refuses the conversation: {error}") from error


def _encode_pieces(pieces: Sequence[_Piece], tokenizer: PreTrainedTokenizerBase) -> Example:
    """Tokenize the pieces' joined text so that each border between pieces is a border between tokens.

    The text is tokenized as a whole when the tokens of everything before each border begin it, as they nearly
    always do. Where a token would reach across a border (an answer that begins with the newline that ends its
    prompt) the pieces are tokenized one by one, which is what the model sees when it is served: a finished prompt,
    then its own tokens.
    """
    ids: list[int] = tokenizer.encode("".join(piece.text for piece in pieces), add_special_tokens=False)
    lengths: list[int] = []
    before, text = 0, ""
    for piece in pieces[:-1]:
        text += piece.text
        prefix: list[int] = tokenizer.encode(text, add_special_tokens=False)
        if ids[: len(prefix)] != prefix:
            return _encode_one_by_one(pieces, tokenizer)
        lengths.append(len(prefix) - before)
        before = len(prefix)
    lengths.append(len(ids) - before)
    flags = [piece.is_answer for piece, length in zip(pieces, lengths, strict=True) for _ in range(length)]
    return Example(
        tuple(ids), tuple(token if flag else IGNORED_LABEL for token, flag in zip(ids, flags, strict=True))
    )


def _encode_one_by_one(pieces: Sequence[_Piece], tokenizer: PreTrainedTokenizerBase) -> Example:
    ids: list[int] = []
    labels: list[int] = []
    for piece in pieces:
        tokens: list[int] = tokenizer.encode(piece.text, add_special_tokens=False)
        ids.extend(tokens)
        labels.extend(tokens if piece.is_answer else [IGNORED_LABEL] * len(tokens))
    return Example(tuple(ids), tuple(labels))
