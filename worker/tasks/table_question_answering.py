"""table-question-answering: the cells of a table that answer a question about it, by TAPAS.

The library's forward pass takes one table at a time. Here tables of many jobs share one: their rows are padded by us,
and masked as the model masks the padding of several questions about one table.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers.pipelines.base import Pipeline

from tandem.errors import UnsupportedTask
from tandem.specs.answers import QuestionAboutTable, TableQuestionAnsweringParameters
from worker.media.reader import MediaReader
from worker.tasks.batched_task import Pause
from worker.tasks.pipeline_task import PipelinePiece
from worker.tasks.text_pipeline_task import TextPipelineTask


class TableQuestionAnswering(TextPipelineTask[TableQuestionAnsweringParameters]):
    """The answer to a question about a table; to several about one table, a list of answers."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Raises UnsupportedTask: the model is no TAPAS. (TAPEX's tokenizer is not in transformers any more.)"""
        super().__init__(pipeline)
        if pipeline.type != "tapas":  # type: ignore[attr-defined]  # TableQuestionAnsweringPipeline's
            raise UnsupportedTask(
                f"{pipeline.model.name_or_path} does not answer questions about tables; choose a TAPAS model."
            )

    def read(self, value: QuestionAboutTable, media: MediaReader, param: str) -> dict[str, Any]:  # noqa: ARG002
        table = pd.DataFrame({name: list(cells) for name, cells in value.table.items()})
        return {"table": table, "query": value.query if isinstance(value.query, str) else list(value.query)}

    def forward(self, pieces: Sequence[PipelinePiece], pause: Pause) -> Sequence[Any]:
        if len(pieces) == 1:
            return super().forward(pieces, pause)
        inputs = [piece.model_inputs for piece in pieces]
        tensors = {name: self._padded([one[name] for one in inputs], name) for name in inputs[0] if name != "table"}
        given = self.pipeline.forward({**tensors, "table": None}, **pieces[0].forward_options)["outputs"]
        parts = (
            [given.logits] if given.get("logits_aggregation") is None else [given.logits, given.logits_aggregation]
        )
        rows = [one["input_ids"].shape[0] for one in inputs]
        outputs = []
        for one, *of_piece in zip(inputs, *(part.split(rows) for part in parts), strict=True):
            tokens = one["input_ids"].shape[1]
            of_piece[0] = of_piece[0][:, :tokens]
            model_inputs = {name: value for name, value in one.items() if name != "table"}
            outputs.append({"model_inputs": model_inputs, "table": one["table"], "outputs": tuple(of_piece)})
        return outputs

    def _padded(self, tensors: Sequence[Tensor], name: str) -> Tensor:
        """The rows of all, [rows, longest, …]."""
        longest = max(tensor.shape[1] for tensor in tensors)
        filler = self.pipeline.tokenizer.pad_token_id if name == "input_ids" else 0
        padded = []
        for tensor in tensors:
            shape = (tensor.shape[0], longest - tensor.shape[1], *tensor.shape[2:])
            padded.append(torch.cat([tensor, tensor.new_full(shape, filler)], dim=1))
        return torch.cat(padded)

    def _company(self, inputs: dict[str, Any], forward: dict[str, Any]) -> Hashable:  # noqa: ARG002 - any tables
        # Questions in turn read the answers before them.
        return object() if forward.get("sequential") else "tables"
