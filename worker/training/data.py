"""Token ids with labels: what every task's rows become, and how the rows of text-generation do."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tandem.errors import InvalidTrainingData
from tandem.specs import ChatMessage, ChatRow, CompletionRow
from worker.training.loss import IGNORED_LABEL

GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\b")
"""Marks what the assistant says in a chat template: transformers' extension to Jinja."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row, or one window of a longer row, as tokens."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """Which they are is the task's matter. For text-generation one a token: the answer's ids, and -100 elsewhere."""
    token_type_ids: tuple[int, ...] | None = None
    """Which of two texts a token belongs to; None where the tokenizer does not say."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of a file's rows."""

    rows: int
    tokens: int
    """Tokens of the examples that are used, prompts included."""
    answer_tokens: int
    """Of these, the tokens that carry loss. Where a head is learned, the labels that do: one for each class, tagged
    word, and start or end of a window's answer."""
    truncated_rows: int
    """Rows longer than the limit, cut at their end or into windows; they count among the dropped ones too if those
    are dropped."""
    dropped_rows: int
    """Rows of which no answer is left."""


@dataclass(frozen=True, slots=True)
class EncodedData:
    examples: tuple[Example, ...]
    report: DataReport
    labels: tuple[str, ...] = ()
    """What the labels' numbers mean, where they are numbers of classes."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a row's text that carries loss throughout or not at all."""

    text: str
    is_answer: bool


def encode_rows(
    rows: Sequence[ChatRow | CompletionRow],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    *,
    param: str = "training_file",
) -> EncodedData:
    """Tokenize each row, with loss on its answers alone, and cut it at `max_tokens`.

    A chat is rendered by the tokenizer's own template; its answers are all of the assistant's messages, each with
    its end-of-turn token. A completion gets the end-of-sequence token, and so does its loss.

    Raises InvalidTrainingData (with `param`) naming the row, counted from 1, that cannot be encoded, or when no row
    of the file can be used.
    """
    examples: list[Example] = []
    truncated = dropped = 0
    for number, row in enumerate(rows, start=1):
        try:
            whole = _encode_chat(row, tokenizer) if isinstance(row, ChatRow) else _encode_completion(row, tokenizer)
        except InvalidTrainingData as error:
            raise InvalidTrainingData(f"row {number}: {error.message}", param=param) from error
        truncated += len(whole.input_ids) > max_tokens
        # The first token follows nothing, so nothing predicts it.
        labels = (IGNORED_LABEL, *whole.labels[1:max_tokens])
        if any(label != IGNORED_LABEL for label in labels):
            examples.append(Example(whole.input_ids[:max_tokens], labels))
        else:
            dropped += 1
    if not examples:
        raise InvalidTrainingData(_nothing_left(len(rows), max_tokens), param=param)
    return EncodedData(tuple(examples), report_on(examples, rows=len(rows), truncated=truncated, dropped=dropped))


def report_on(examples: Sequence[Example], *, rows: int, truncated: int, dropped: int) -> DataReport:
    return DataReport(
        rows=rows,
        tokens=sum(len(example.input_ids) for example in examples),
        answer_tokens=sum(label != IGNORED_LABEL for example in examples for label in example.labels),
        truncated_rows=truncated,
        dropped_rows=dropped,
    )


def _nothing_left(rows: int, max_tokens: int) -> str:
    if rows == 0:
        return "the file has no rows: send at least one"
    return (
        f"none of the {rows} rows (row 1 the first) has any of its answer within {max_tokens} tokens: "
        "shorten the prompts or raise hyperparameters.max_tokens"
    )


def _encode_completion(row: CompletionRow, tokenizer: PreTrainedTokenizerBase) -> Example:
    example = _encode_pieces([_Piece(row.prompt, False), _Piece(row.completion, True)], tokenizer)
    # What the tokenizer puts before a plain prompt when it is served, it puts before it here.
    lead = _leading_special_tokens(tokenizer)
    end = () if tokenizer.eos_token_id is None else (cast("int", tokenizer.eos_token_id),)
    return Example((*lead, *example.input_ids, *end), (*(IGNORED_LABEL for _ in lead), *example.labels, *end))


def _leading_special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    bos = cast("int | None", tokenizer.bos_token_id)
    return (bos,) if bos is not None and tokenizer.encode("")[:1] == [bos] else ()


def _encode_chat(row: ChatRow, tokenizer: PreTrainedTokenizerBase) -> Example:
    if tokenizer.chat_template is None:
        raise InvalidTrainingData(
            "it is a chat, but the model's tokenizer has no chat template: send rows of prompt and completion"
        )
    if GENERATION_BLOCK.search(tokenizer.get_chat_template()):
        return _encode_by_generation_blocks(row, tokenizer)
    return _encode_pieces(_pieces_of_chat(row.messages, tokenizer), tokenizer)


def _encode_by_generation_blocks(row: ChatRow, tokenizer: PreTrainedTokenizerBase) -> Example:
    def render() -> Any:
        return tokenizer.apply_chat_template(
            _plain(row.messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )

    encoded = _rendered(render)
    ids, is_answer = encoded["input_ids"], encoded["assistant_masks"]
    return Example(
        tuple(ids), tuple(token if mask else IGNORED_LABEL for token, mask in zip(ids, is_answer, strict=True))
    )


def _pieces_of_chat(messages: Sequence[ChatMessage], tokenizer: PreTrainedTokenizerBase) -> list[_Piece]:
    """Cut the rendered conversation at the start and the end of each answer.

    The template is run on each prefix of the conversation: with the generation prompt, just before an answer, and
    without it, just after. Each result must be a prefix of the whole: then what is learned is exactly what follows
    the prompt that serving renders. An assistant's first message answers nothing and carries no loss.
    """
    whole = _render(messages, tokenizer)
    pieces: list[_Piece] = []
    position = 0
    for index, message in enumerate(messages):
        if index == 0 or message.role != "assistant":
            continue
        prompt = _render(messages[:index], tokenizer, add_generation_prompt=True)
        answered = _end_of_turn(_render(messages[: index + 1], tokenizer), tokenizer)
        if not (whole.startswith(answered) and answered.startswith(prompt) and len(prompt) >= position):
            raise InvalidTrainingData(
                f"message {index + 1} is rendered differently by the model's chat template when others follow it, so "
                "its tokens cannot be told apart: split the conversation into rows that end with each answer"
            )
        pieces.append(_Piece(whole[position : len(prompt)], False))
        pieces.append(_Piece(whole[len(prompt) : len(answered)], True))
        position = len(answered)
    # What the template puts after the last end of turn, such as a newline, comes after generation has stopped.
    return pieces


def _end_of_turn(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`text` without the white space that follows its last special token, if nothing else follows it."""
    stripped = text.rstrip()
    return stripped if stripped.endswith(tuple(tokenizer.all_special_tokens)) else text


def _render(
    messages: Sequence[ChatMessage], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> str:
    def render() -> Any:
        return tokenizer.apply_chat_template(
            _plain(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )

    return cast("str", _rendered(render))


def _rendered(render: Callable[[], Any]) -> Any:
    try:
        return render()
    except TemplateError as error:
        raise InvalidTrainingData(f"the model's chat template refuses the conversation: {error}") from error


def _plain(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


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


class PaddedBatch:
    """Collates examples into tensors [rows, longest row], padded on the right.

    `input_ids` are padded with the tokenizer's padding token, `labels` with -100; `attention_mask` is 1 on real
    tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # Any token does: padding carries no loss, and in causal attention no real token sees it.
        candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._padding = next(token for token in candidates if isinstance(token, int))

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        return {
            "input_ids": padded([example.input_ids for example in examples], self._padding),
            "attention_mask": padded([[1] * len(example.input_ids) for example in examples], 0),
            "labels": padded([example.labels for example in examples], IGNORED_LABEL),
        }


def padded(sequences: Sequence[Sequence[int]], padding: int) -> Tensor:
    """[sequences, the longest one's length], padded on the right."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[padding] * (longest - len(sequence))] for sequence in sequences])
