"""question-answering as transformers 4 had it: the stretch of a context that answers a question."""

from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from transformers.pipelines.base import ChunkPipeline

MAX_TOKENS = 384
"""Of one window, question and context together (version 4's default)."""
STRIDE_TOKENS = 128
"""By how much two windows overlap at most (version 4's default)."""
MAX_ANSWER_TOKENS = 15
"""Version 4's default."""
MASKED_LOGIT = -10_000.0
"""Of a token that may not begin or end an answer: its probability is 0 in every float type."""
WINDOW_PARAMETERS = frozenset({"max_seq_len", "max_question_len", "doc_stride", "padding"})
SPAN_PARAMETERS = frozenset({"top_k", "max_answer_len", "handle_impossible_answer", "align_to_words"})
AT_LEAST = {"max_seq_len": 1, "max_question_len": 1, "doc_stride": 0, "top_k": 1, "max_answer_len": 1}

Probabilities = np.ndarray[Any, np.dtype[np.float64]]


class Answer(TypedDict):
    """A stretch of the context: `context[start:end] == answer`. `score` is the product of the probabilities, in its
    window, that the answer begins and ends there."""

    score: float
    start: int
    end: int
    answer: str


class QuestionAnsweringPipeline(ChunkPipeline):
    """Takes `{"question", "context"}`, or both as keyword arguments; gives an Answer, or a list with `top_k` above 1.

    A long context is read in overlapping windows. Needs a fast tokenizer. Values are version 4's but for these, each
    of which was a fault of it: equal words at two places of a context are two answers; a span that two windows find
    has the better of its two scores, not their sum; padding at the left changes nothing; and "no answer" is the
    model's [CLS] token wherever it stands, not whatever stands first.
    """

    # What the library's `pipeline` loads beside the model; it declares these as None.
    default_input_names: Any = "question,context"
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True
    tokenizer: Any

    def _sanitize_parameters(self, **asked: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown := asked.keys() - WINDOW_PARAMETERS - SPAN_PARAMETERS:
            raise TypeError(f"question-answering has no parameter {', '.join(sorted(unknown))}")
        given = {name: value for name, value in asked.items() if value is not None}
        for name, least in AT_LEAST.items():
            if given.get(name, least) < least:
                raise ValueError(f"{name} must be at least {least}, not {given[name]}")
        return (
            {name: value for name, value in given.items() if name in WINDOW_PARAMETERS},
            {},
            {name: value for name, value in given.items() if name in SPAN_PARAMETERS},
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not args and "question" in kwargs:
            args = ({"question": kwargs.pop("question"), "context": kwargs.pop("context")},)
        return super().__call__(*args, **kwargs)  # type: ignore[no-untyped-call]  # the library's own

    def preprocess(self, input_: Mapping[str, str], **parameters: Any) -> Any:
        """One item a window: its tensors [1, tokens], which tokens may begin or end an answer, the window's encoding.

        Raises ValueError for an empty question or context, and for windows without room for the context.
        """
        return self._windows(input_["question"], input_["context"], **parameters)

    def _windows(
        self,
        question: str,
        context: str,
        *,
        max_seq_len: int | None = None,
        max_question_len: int | None = None,
        doc_stride: int | None = None,
        padding: str = "do_not_pad",
    ) -> Iterator[dict[str, Any]]:
        if not question.strip():
            raise ValueError("`question` cannot be empty")
        if not context.strip():
            raise ValueError("`context` cannot be empty")
        tokenizer = self.tokenizer
        if max_question_len is not None:
            question = self._cut(question, max_question_len)
        # A model that is padded at the left reads the context first.
        question_first = tokenizer.padding_side == "right"
        longest = min(tokenizer.model_max_length, MAX_TOKENS) if max_seq_len is None else max_seq_len
        encoded = tokenizer(
            question if question_first else context,
            context if question_first else question,
            padding=padding,
            truncation="only_second" if question_first else "only_first",
            max_length=longest,
            stride=self._stride(question, context, longest, doc_stride),
            return_overflowing_tokens=True,
        )
        context_is = 1 if question_first else 0
        for number, window in enumerate(encoded.encodings):
            item = {
                "input_ids": window.ids,
                "attention_mask": window.attention_mask,
                # Named as version 4 named it: the library pads what has this name with 1.
                "p_mask": [0 if place == context_is else 1 for place in window.sequence_ids],
                "no_answer": self._stands_for_no_answer(window),
            }
            if "token_type_ids" in tokenizer.model_input_names:
                item["token_type_ids"] = window.type_ids
            yield {
                **{name: torch.tensor([values]) for name, values in item.items()},
                "window": window,
                "context": context,
                "context_is": context_is,
                "is_last": number == len(encoded.encodings) - 1,
            }

    def _forward(self, input_tensors: Any, **_parameters: Any) -> Any:
        inputs = {name: input_tensors[name] for name in self.tokenizer.model_input_names if name in input_tensors}
        output = self.model(**inputs)
        kept = ("p_mask", "no_answer", "attention_mask", "window", "context", "context_is", "is_last")
        return {
            "start": output.start_logits,
            "end": output.end_logits,
            **{name: input_tensors[name] for name in kept},
        }

    def postprocess(self, model_outputs: Any, **parameters: Any) -> Any:
        """The best answers of all windows, best first; an empty one competes if `handle_impossible_answer`."""
        return self._answers(model_outputs, **parameters)

    def _answers(
        self,
        windows: list[dict[str, Any]],
        *,
        top_k: int = 1,
        max_answer_len: int = MAX_ANSWER_TOKENS,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Answer | list[Answer]:
        best: dict[tuple[int, int], float] = {}
        nothing = 1.0
        # Several candidates may be of the same words: version 4 takes as many more of them.
        candidates = top_k * 2 + 10 if align_to_words else top_k
        for window in windows:
            starts, ends, no_answer = _probabilities(window)
            nothing = min(nothing, no_answer)
            found: dict[tuple[int, int], float] = {}
            for start, end, score in _best_spans(starts, ends, candidates, max_answer_len):
                span = self._characters(window, start, end, align_to_words=align_to_words)
                # The model means one stretch of tokens: that it means one of these is the sum.
                found[span] = found.get(span, 0.0) + score
            best |= {span: max(score, best.get(span, 0.0)) for span, score in found.items()}
        context = windows[0]["context"]
        answers = [
            Answer(score=score, start=start, end=end, answer=context[start:end])
            for (start, end), score in best.items()
        ]
        if handle_impossible_answer or not answers:
            answers.append(Answer(score=nothing, start=0, end=0, answer=""))
        answers = sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]
        return answers[0] if top_k == 1 else answers

    def _cut(self, question: str, tokens: int) -> str:
        """The question's first `tokens` tokens, as its text."""
        offsets = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        return question if len(offsets) <= tokens else question[: offsets[tokens - 1][1]]

    def _stride(self, question: str, context: str, longest: int, asked: int | None) -> int:
        """The tokens by which windows of `longest` tokens overlap. Raises ValueError if that leaves none to go on."""
        tokenizer = self.tokenizer
        special = tokenizer.num_special_tokens_to_add(pair=True)
        room = longest - special - len(tokenizer(question, add_special_tokens=False).input_ids)
        stride = min(longest // 2, STRIDE_TOKENS, max(room // 2, 0)) if asked is None else asked
        if room > stride:
            return stride
        if len(tokenizer(context, add_special_tokens=False).input_ids) <= room:
            return 0  # one window holds it all
        raise ValueError(
            f"max_seq_len ({longest}) leaves {room} tokens for the context beside the question, but windows overlap "
            f"by {stride} (doc_stride): raise max_seq_len, or lower doc_stride or max_question_len"
        )

    def _stands_for_no_answer(self, window: Any) -> list[int]:
        """1 for the token, if any, with which the model says that the context has no answer."""
        cls = self.tokenizer.cls_token_id
        return [
            1 if place is None and token == cls else 0
            for place, token in zip(window.sequence_ids, window.ids, strict=True)
        ]

    def _characters(self, output: dict[str, Any], start: int, end: int, *, align_to_words: bool) -> tuple[int, int]:
        """Where the tokens' stretch begins and ends in the context; widened to whole words, where there are words."""
        window, context = output["window"], output["context_is"]
        if self.tokenizer.padding_side == "left":
            # A batch pads at the left: the row's tokens have moved, the window's have not.
            moved = output["attention_mask"].shape[-1] - len(window.ids)
            start, end = start - moved, end - moved
        if align_to_words:
            first, last = window.token_to_word(start), window.token_to_word(end)
            if first is not None and last is not None:
                return window.word_to_chars(first, context)[0], window.word_to_chars(last, context)[1]
        return window.offsets[start][0], window.offsets[end][1]


def _probabilities(output: dict[str, Any]) -> tuple[Probabilities, Probabilities, float]:
    """That the answer begins and that it ends at each token, [tokens], 0 outside of the context; that there is none.

    By softmax over the context and the token that stands for no answer.
    """
    real = output["attention_mask"][0].numpy() == 1
    context = (output["p_mask"][0].numpy() == 0) & real
    no_answer = (output["no_answer"][0].numpy() == 1) & real

    def softmax(logits: torch.Tensor) -> Probabilities:
        values = np.where(context | no_answer, logits[0].double().numpy(), MASKED_LOGIT)
        values = np.exp(values - values.max())
        return np.asarray(values / values.sum(), dtype=np.float64)

    starts, ends = softmax(output["start"]), softmax(output["end"])
    nothing = float(starts[no_answer].sum() * ends[no_answer].sum())
    return np.where(context, starts, 0.0), np.where(context, ends, 0.0), nothing


def _best_spans(starts: Probabilities, ends: Probabilities, count: int, longest: int) -> list[tuple[int, int, float]]:
    """The `count` best (start, end, score) with an end up to `longest` tokens from the start, best first."""
    tokens = len(starts)
    scores = np.zeros((min(longest, tokens), tokens))
    for more in range(len(scores)):
        scores[more, : tokens - more] = starts[: tokens - more] * ends[more:]
    flat = scores.ravel()
    count = min(count, flat.size)
    chosen = np.argpartition(-flat, count - 1)[:count]
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")]
    return [
        (int(place % tokens), int(place % tokens + place // tokens), float(flat[place]))
        for place in chosen
        if flat[place] > 0
    ]
