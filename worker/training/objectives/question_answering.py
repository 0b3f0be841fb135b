"""question-answering: the span of a context that answers a question, found by where it starts and ends."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tandem.errors import InvalidTrainingData
from tandem.specs import TrainingRow
from tandem.specs.training_rows import QuestionAnsweringRow
from worker.training.data import EncodedData, Example
from worker.training.encoding import EncodedRow, encode_rows
from worker.training.example_file import Form, ItemWriter
from worker.training.objectives.answers import exact_match, overlap
from worker.training.objectives.headed import HeadedObjective
from worker.training.objectives.objective import Batch, Metric, wrong_row

TASK: Final = "question-answering"
DOC_STRIDE_TOKENS = 128
"""Tokens that neighbouring windows of a context share, as in transformers' pipeline and BERT's own SQuAD script: far
more than nearly all answers have, so that one of the two holds the answer whole, with words around it."""
MINIMUM_WINDOW_TOKENS = 8
"""Tokens of the context beside which a question must leave room; with fewer there would be no answers to find."""
ANSWER_TOKENS = 30
"""The longest answer that an evaluation takes (transformers' run_qa.py): longer spans are never right."""

Offsets = tuple[tuple[int, int] | None, ...]
"""For each token of a window its first character in the context and the one after its last; None elsewhere."""


@dataclass(frozen=True, slots=True)
class Window:
    """A question with a stretch of its context, and where it came from."""

    row: int
    offsets: Offsets
    none_at: int
    """The token that both start and end point to when the window holds no answer."""


@dataclass(frozen=True, slots=True)
class EncodedQuestions(EncodedData):
    rows: Sequence[QuestionAnsweringRow]
    windows: Sequence[Window]
    """One for each example."""


def _window_columns(window: Window) -> dict[str, Any]:
    starts, ends = zip(*((-1, -1) if at is None else at for at in window.offsets), strict=True)
    return {"row": window.row, "starts": starts, "ends": ends, "none_at": window.none_at}


def _window(columns: dict[str, Any]) -> Window:
    offsets = zip(columns["starts"], columns["ends"], strict=True)
    return Window(columns["row"], tuple(None if at[0] < 0 else at for at in offsets), columns["none_at"])


WINDOWS: Form[Window] = Form(
    {"row": "int64", "starts": "[int32]", "ends": "[int32]", "none_at": "int32"}, _window_columns, _window
)
QUESTIONS: Form[QuestionAnsweringRow] = Form(
    {"row": "string"},
    lambda row: {"row": row.model_dump_json()},
    lambda columns: QuestionAnsweringRow.model_validate_json(columns["row"]),
)


class QuestionAnswering(HeadedObjective):
    task_type: ClassVar[str] = "QUESTION_ANS"

    def __init__(
        self,
        body: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
        training_rows: Iterable[TrainingRow],
    ) -> None:
        super().__init__(TASK, body, tokenizer, max_tokens, ())
        self._may_be_empty = any(
            isinstance(row, QuestionAnsweringRow) and not row.answers.text for row in training_rows
        )

    def encode_row(self, row: TrainingRow) -> EncodedRow:
        """One example for each window of a row's context. Its `labels` are two: the first and the last token of the
        answer, or twice the first token of all (`[CLS]`) where the window does not hold it."""
        encoded, is_cut = self._encode(row, 0)
        return EncodedRow([example for example, _ in encoded], is_cut)

    def encode(
        self,
        rows: Iterable[TrainingRow],
        *,
        param: str = "training_file",
        folder: Path | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> EncodedQuestions:
        """Also keeps the questions and their windows, from which an evaluation finds the answers' texts."""
        windows = ItemWriter(WINDOWS, folder, f"{param}-windows")
        questions = ItemWriter(QUESTIONS, folder, f"{param}-questions")
        place = 0

        def encode_row(row: TrainingRow) -> EncodedRow:
            nonlocal place
            encoded, is_cut = self._encode(row, place)
            assert isinstance(row, QuestionAnsweringRow)
            questions.add(row)
            place += 1
            for _, window in encoded:
                windows.add(window)
            return EncodedRow([example for example, _ in encoded], is_cut)

        data = encode_rows(rows, encode_row, param=param, folder=folder, check=check)
        return EncodedQuestions(
            **{field.name: getattr(data, field.name) for field in fields(data)},
            rows=questions.close(),
            windows=windows.close(),
        )

    def metric(self, validation: EncodedData) -> Metric:
        assert isinstance(validation, EncodedQuestions)
        return Spans(validation, may_be_empty=self._may_be_empty)

    def logits(self, twin: PreTrainedModel, batch: Batch) -> Tensor:
        """[rows, 2, tokens] in fp32: how well an answer starts at each token, and how well it ends there.

        Padding is out of the question: in transformers' own loss it competes with the text, so that a row's loss
        depends on the rows beside it.
        """
        outputs = twin(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        logits = torch.stack((outputs.start_logits, outputs.end_logits), dim=1).float()
        return logits.masked_fill(batch["attention_mask"].unsqueeze(1) == 0, torch.finfo(logits.dtype).min)

    def _encode(self, row: TrainingRow, place: int) -> tuple[list[tuple[Example, Window]], bool]:
        """A row's windows, none where they could not teach its answer; and whether there is more than one.

        `place` is the row's number among those that are used, from 0.
        """
        if not isinstance(row, QuestionAnsweringRow):
            raise wrong_row(TASK)
        room = self.max_tokens - len(self.tokenizer(row.question, "", verbose=False)["input_ids"])
        if room < MINIMUM_WINDOW_TOKENS:
            raise InvalidTrainingData(
                f"its question leaves no room for the context within {self.max_tokens} tokens: shorten it, or raise "
                "hyperparameters.max_tokens"
            )
        encoding = self.tokenizer(
            row.question,
            row.context,
            truncation="only_second",
            max_length=self.max_tokens,
            stride=min(DOC_STRIDE_TOKENS, room // 2),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        answer = _first_answer(row)
        encoded = [self._window(encoding, number, answer, place) for number in range(len(encoding["input_ids"]))]
        is_cut = len(encoded) > 1
        if answer is not None and all(example.labels[0] == window.none_at for example, window in encoded):
            return [], is_cut  # longer than a window: what is left would teach that there is no answer
        return encoded, is_cut

    def _window(self, encoding: Any, number: int, answer: tuple[int, int] | None, row: int) -> tuple[Example, Window]:
        ids: list[int] = encoding["input_ids"][number]
        types = encoding["token_type_ids"][number] if "token_type_ids" in encoding else None
        offsets: Offsets = tuple(
            (start, end) if text == 1 else None
            for (start, end), text in zip(
                encoding["offset_mapping"][number], encoding.sequence_ids(number), strict=True
            )
        )
        none_at = ids.index(self.tokenizer.cls_token_id) if self.tokenizer.cls_token_id in ids else 0
        span = None if answer is None else _tokens_of(answer, offsets)
        example = Example(tuple(ids), span or (none_at, none_at), None if types is None else tuple(types))
        return example, Window(row, offsets, none_at)


class Spans:
    """SQuAD's exact match and F1 over the questions, each with the best span of all its windows."""

    def __init__(self, data: EncodedQuestions, *, may_be_empty: bool) -> None:
        """`may_be_empty`: training has seen questions without an answer, so it may find that there is none."""
        self._data = data
        self._may_be_empty = may_be_empty
        self._window = 0
        self._best: dict[int, tuple[float, str]] = {}
        """Row → score and text of its best span so far."""
        self._empty: dict[int, float] = {}
        """Row → the lowest score that one of its windows has given to there being no answer in it."""

    def add(self, logits: Tensor) -> None:
        for start, end in logits.float().cpu().unbind(0):
            window = self._data.windows[self._window]
            self._window += 1
            score, first, last = _best_span(start, end, window.offsets)
            if score > self._best.get(window.row, (float("-inf"), ""))[0]:
                self._best[window.row] = (score, self._text(window, first, last))
            empty = float(start[window.none_at] + end[window.none_at])
            self._empty[window.row] = min(empty, self._empty.get(window.row, empty))

    def figures(self) -> dict[str, float]:
        matches, overlaps = 0.0, 0.0
        for row, (score, text) in self._best.items():
            predicted = "" if self._may_be_empty and self._empty[row] > score else text
            expected = self._data.rows[row].answers.text
            matches += exact_match(predicted, expected)
            overlaps += overlap(predicted, expected)
        return {"exact_match": matches / len(self._best), "f1": overlaps / len(self._best)}

    def _text(self, window: Window, first: int, last: int) -> str:
        start, end = window.offsets[first], window.offsets[last]
        assert start is not None
        assert end is not None
        return self._data.rows[window.row].context[start[0] : end[1]]


def _first_answer(row: QuestionAnsweringRow) -> tuple[int, int] | None:
    """First and last character of the answer that is learned, white space around it left out; None without one."""
    if not row.answers.text:
        return None
    text, start = row.answers.text[0], row.answers.answer_start[0]
    return start + len(text) - len(text.lstrip()), start + len(text.rstrip()) - 1


def _tokens_of(characters: tuple[int, int], offsets: Offsets) -> tuple[int, int] | None:
    """The tokens that hold the first and the last of these characters; None unless both are in the window."""
    found = []
    for character in characters:
        token = next((place for place, at in enumerate(offsets) if at and at[0] <= character < at[1]), None)
        if token is None:
            return None
        found.append(token)
    return found[0], found[1]


def _best_span(start: Tensor, end: Tensor, offsets: Offsets) -> tuple[float, int, int]:
    """Score, first and last token of the best span of context tokens.

    start, end: [tokens], maybe with padding after the window's own.
    """
    tokens = len(offsets)
    is_context = torch.tensor([at is not None for at in offsets])
    scores = start[:tokens, None] + end[None, :tokens]
    possible = is_context[:, None] & is_context[None, :]
    possible &= torch.ones_like(possible).triu() & torch.ones_like(possible).tril(ANSWER_TOKENS - 1)
    scores = scores.masked_fill(~possible, float("-inf"))
    best = int(scores.argmax())
    return float(scores.flatten()[best]), best // tokens, best % tokens
