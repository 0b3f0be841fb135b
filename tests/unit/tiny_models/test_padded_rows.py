"""Which models take rows of different sizes in one padded batch, and give each row what it gets alone.

This is what a batch across jobs rests on; the batches that the library's pipelines make are in test_pipelines.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import torch.nn.functional as F

from tests.tiny_models.calls import CALLS

EXACT = [
    ("feature-extraction", "tiny-bert", ["last_hidden_state"]),
    ("token-classification", "tiny-bert-entities", ["logits"]),
    ("table-question-answering", "tiny-tapas", ["logits", "logits_aggregation"]),
    ("document-question-answering", "tiny-layoutlm", ["start_logits", "end_logits"]),
    ("audio-classification", "tiny-wav2vec2", ["logits"]),
    ("automatic-speech-recognition", "tiny-wav2vec2-ctc", ["logits"]),
    ("keypoint-matching", "tiny-superglue", ["matches", "matching_scores"]),
]
INEXACT = [
    ("object-detection", "tiny-detr", ["logits"]),
    ("depth-estimation", "tiny-glpn", ["predicted_depth"]),
    ("text-to-audio", "tiny-vits", ["waveform"]),
]
"""Convolutions look over the edge of a row, and its pixel mask (where there is one) hides nothing from them."""

NOT_FOR_THE_MODEL = {"special_tokens_mask", "offset_mapping", "target_size"}


def rows_of(pipe: Any, task: str, folder: Path) -> list[dict[str, torch.Tensor]]:
    """What the task's pipeline hands its model for each of the three inputs: tensors of shape [1, ...]."""
    rows = []
    for one in CALLS[task].inputs(folder):
        given = {**one, "table": pandas.DataFrame(one["table"])} if task == "table-question-answering" else one
        prepared = pipe.preprocess(given, **pipe._preprocess_params)
        chunk = prepared if hasattr(prepared, "items") else next(iter(prepared))
        tensors = chunk.get("model_inputs", chunk).items()
        rows.append({key: value for key, value in tensors if torch.is_tensor(value) and key not in NOT_FOR_THE_MODEL})
    return rows


def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One batch: every tensor padded with zeros, at its end, to the largest of its kind."""
    batch = {}
    for key in rows[0]:
        sizes = [max(row[key].shape[axis] for row in rows) for axis in range(1, rows[0][key].ndim)]
        parts = []
        for row in rows:
            missing = [size - have for size, have in zip(sizes, row[key].shape[1:], strict=True)]
            parts.append(F.pad(row[key], [edge for size in reversed(missing) for edge in (0, size)]))
        batch[key] = torch.cat(parts)
    return batch


def furthest(pipe: Any, task: str, folder: Path, outputs: list[str]) -> float:
    """The largest distance between a row's output in the batch and alone, where the row is not padding."""
    rows = rows_of(pipe, task, folder)
    with torch.inference_mode():
        together = pipe.model(**padded(rows))
        distances = []
        for index, row in enumerate(rows):
            alone = pipe.model(**row)
            for name in outputs:
                expected = alone[name].float()
                cut = together[name][index : index + 1][tuple(slice(size) for size in expected.shape)].float()
                distances.append(float(((cut - expected).abs() / expected.abs().clamp(min=1)).max()))
    return max(distances)


@pytest.mark.parametrize(("task", "name", "outputs"), EXACT)
def test_padded_rows_equal_rows_alone(
    task: str, name: str, outputs: list[str], tiny_pipeline: Callable[[str, str], Any], tmp_path: Path
) -> None:
    """With the masks that preprocessing makes, padding changes nothing beyond float32 rounding."""
    assert furthest(tiny_pipeline(task, name), task, tmp_path, outputs) < 2e-5


@pytest.mark.parametrize(("task", "name", "outputs"), INEXACT)
def test_these_may_only_share_a_batch_at_equal_sizes(
    task: str, name: str, outputs: list[str], tiny_pipeline: Callable[[str, str], Any], tmp_path: Path
) -> None:
    """Padding reaches their outputs: a job's answer would depend on its strangers."""
    assert furthest(tiny_pipeline(task, name), task, tmp_path, outputs) > 1e-3
