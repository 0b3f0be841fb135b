"""The tasks of encoder adapters: rows of any adapters, and of the base, in one forward of the resident body.

Before and after the body an adapter does what a model with its head does for the task, by the same code. So a job's
result is what the library gives for that adapter alone.
"""

import copy
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import Pipeline, PreTrainedTokenizerBase, TokenClassificationPipeline

from tandem.errors import InvalidRequest, PromptTooLong
from tandem.specs.encoders import SimilarityParameters
from worker.encoders.adapted_body import AdaptedBody, BodyRow
from worker.encoders.adapter_heads import BodyStandIn
from worker.encoders.encoder_adapter import EncoderAdapter
from worker.pipelines.question_answering import QuestionAnsweringPipeline
from worker.tasks import ENCODER_TASKS, PIPELINE_TASKS
from worker.tasks.batched_task import BatchedTask, Pause, Piece
from worker.tasks.encoder_task import EncodedText
from worker.tasks.feature_extraction import FeatureExtraction
from worker.tasks.pipeline_task import PipelinePiece
from worker.tasks.sentence_similarity import SentenceSimilarity

PIPELINES: dict[str, type[Pipeline]] = {
    "token-classification": TokenClassificationPipeline,
    "question-answering": QuestionAnsweringPipeline,
}
"""The pipelines of PIPELINE_TASKS that an adapter's head stands in."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterParameters:
    """What an input runs with: `BatchedTask`'s parameters."""

    adapter: EncoderAdapter | None
    """None runs the base, which makes embeddings."""
    parameters: Any
    """Those of the adapter's task; of embeddings EmbeddingParameters, or SimilarityParameters to compare them."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterPiece:
    """A piece of the adapter's own task, and the row that it is to the body."""

    task: BatchedTask[Any, Any]
    piece: Piece
    row: BodyRow
    company: Hashable

    def __len__(self) -> int:
        return len(self.row)


class AdapterTask(BatchedTask[AdapterParameters, AdapterPiece]):
    """All tasks over one resident body, by adapters and by the base, for one batcher."""

    def __init__(self, body: AdaptedBody, tokenizer: PreTrainedTokenizerBase) -> None:
        """`tokenizer` is the body's. Raises InvalidModel where the body's embeddings cannot be served."""
        # The library's pipelines switch truncation on and off in the tokenizer itself, which no other thread may use
        # meanwhile: a copy of our own, for one thread at a time.
        tokenizer = copy.deepcopy(tokenizer)
        self._encoding = threading.Lock()
        self.body = body
        self._base = FeatureExtraction(body.body, tokenizer)
        self._base_stand_in = BodyStandIn(body.body.device)
        self._base.model = self._base_stand_in
        self._similarity = SentenceSimilarity(self._base)
        # Windows and truncated texts then fit the body, and padding is where the body has it.
        tokenizer.model_max_length = self._base.max_tokens
        tokenizer.padding_side = "right"
        self._tokenizer: Any = tokenizer
        self._tasks: WeakKeyDictionary[EncoderAdapter, BatchedTask[Any, Any]] = WeakKeyDictionary()

    @property
    def bytes(self) -> int:
        return self.body.bytes

    def task_of(self, adapter: EncoderAdapter | None) -> BatchedTask[Any, Any]:
        """The adapter's own task, around its head: as a model with such a head does it. Without one, the base's.

        Its `forward` is for this object alone to call.
        """
        if adapter is None or adapter.own_head is None:
            return self._base
        with self._encoding:
            if adapter not in self._tasks:
                self._tasks[adapter] = self._make_task(adapter)
            return self._tasks[adapter]

    def encode(
        self, inputs: Sequence[Any], parameters: AdapterParameters, *, first: int = 0
    ) -> list[list[AdapterPiece]]:
        """
        Raises:
            PromptTooLong, InvalidRequest: an input cannot be used, and is named; or the adapter cannot be served.
            AdapterMismatch: the adapter does not fit the body.
        """
        adapter = parameters.adapter
        if adapter is not None:
            self.body.check(adapter)
        task = self.task_of(adapter)
        if task is self._base and isinstance(parameters.parameters, SimilarityParameters):
            task = self._similarity
        with self._encoding:
            encoded: list[list[Any]] = task.encode(inputs, parameters.parameters, first=first)
        return [
            [self._piece(task, piece, adapter, f"inputs[{first + place}]") for piece in pieces]
            for place, pieces in enumerate(encoded)
        ]

    def forward(self, pieces: Sequence[AdapterPiece], pause: Pause) -> Sequence[Any]:
        """One forward of the body, then each adapter's head over its own rows.

        A batch with more adapters than slots takes as many forwards as it needs. Raises InvalidRequest for an adapter
        whose weights overflow, or give output that is not finite.
        """
        outputs: dict[int, Any] = {}
        for places in self.body.forwards([piece.row.adapter for piece in pieces]):
            body_output = self.body.forward([pieces[place].row for place in places])
            groups: dict[Hashable, list[int]] = {}
            for index, place in enumerate(places):
                piece = pieces[place]
                groups.setdefault((piece.row.adapter, piece.task, piece.piece.company), []).append(index)
            for indexes in groups.values():
                group = [pieces[places[index]] for index in indexes]
                with self._stand_in(group[0].row.adapter).giving(body_output.of(indexes)):
                    made = group[0].task.forward([piece.piece for piece in group], pause)
                for index, output in zip(indexes, made, strict=True):
                    _check_finite(output, pieces[places[index]].row.adapter)
                    outputs[places[index]] = output
        return [outputs[place] for place in range(len(pieces))]

    def result(self, outputs: Sequence[Any], pieces: Sequence[AdapterPiece], parameters: AdapterParameters) -> Any:
        return pieces[0].task.result(outputs, [piece.piece for piece in pieces], parameters.parameters)

    def _make_task(self, adapter: EncoderAdapter) -> BatchedTask[Any, Any]:
        if adapter.task in ENCODER_TASKS:
            return ENCODER_TASKS[adapter.task](adapter.head, self._tokenizer)
        around_head = PIPELINES[adapter.task](
            model=adapter.head, tokenizer=self._tokenizer, device=adapter.stand_in.device
        )
        return PIPELINE_TASKS[adapter.task](around_head)

    def _piece(
        self,
        task: BatchedTask[Any, Any],
        piece: EncodedText | PipelinePiece,
        adapter: EncoderAdapter | None,
        name: str,
    ) -> AdapterPiece:
        row = BodyRow(self.body.arguments(_model_inputs(piece)), adapter)
        if len(row) > self._base.max_tokens:
            raise PromptTooLong(
                f"{name} has {len(row)} tokens; the model takes {self._base.max_tokens}. "
                "Shorten the text or split it.",
                param=name,
            )
        if len(row) == 0:
            raise InvalidRequest(f"{name} has no tokens; send a text with at least one word.", param=name)
        return AdapterPiece(task, piece, row, self.body.company(adapter))

    def _stand_in(self, adapter: EncoderAdapter | None) -> BodyStandIn:
        return self._base_stand_in if adapter is None or adapter.own_head is None else adapter.stand_in


def _model_inputs(piece: EncodedText | PipelinePiece) -> Mapping[str, Any]:
    """A piece's inputs of a headed model, each tensor [1, tokens]."""
    if isinstance(piece, PipelinePiece):
        return piece.model_inputs
    inputs = {"input_ids": torch.tensor([piece.input_ids])}
    if piece.token_type_ids is not None:
        inputs["token_type_ids"] = torch.tensor([piece.token_type_ids])
    return inputs


def _check_finite(output: Any, adapter: EncoderAdapter | None) -> None:
    """Refuse a row's output that is not finite; the batcher then finds the row, and spares the others."""
    tensors = (
        [output] if isinstance(output, Tensor) else [value for value in output.values() if torch.is_tensor(value)]
    )
    if not all(torch.isfinite(tensor).all() for tensor in tensors):
        culprit = "the model" if adapter is None else f"the model or of adapter {adapter.id!r}"
        raise InvalidRequest(f"the output is not finite: the weights of {culprit} are at fault", param="adapter")
