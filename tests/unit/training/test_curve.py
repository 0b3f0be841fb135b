"""The files that tell a training's course."""

import csv
import io
from typing import Any

from PIL import Image

from worker.training.curve import loss_picture, loss_table

HISTORY: list[dict[str, Any]] = [
    {"type": "evaluation", "step": 0, "loss": 3.0, "mean_token_accuracy": 0.1},
    {"type": "metrics", "step": 1, "loss": 2.5, "mean_token_accuracy": 0.25, "grad_norm": 1.0},
    {"type": "metrics", "step": 2, "loss": 2.0},
    {"type": "evaluation", "step": 2, "loss": 2.25, "f1": 0.5, "accuracy": 0.75},
]


def test_the_table_has_openais_columns() -> None:
    """One line a step; what was not measured there is left empty."""
    rows = list(csv.DictReader(io.StringIO(loss_table(HISTORY).decode())))
    assert list(rows[0]) == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [list(row.values()) for row in rows] == [
        ["0", "", "", "3.0", "0.1"],
        ["1", "2.5", "0.25", "", ""],
        ["2", "2.0", "", "2.25", "0.75"],
    ]


def test_the_picture_is_a_png_with_both_curves() -> None:
    """Drawn without a display; the validation loss adds ink."""
    with_both, without = (
        Image.open(io.BytesIO(loss_picture(history, "ft:tiny:me:$x_1$")))
        for history in (HISTORY, [event for event in HISTORY if event["type"] == "metrics"])
    )
    assert with_both.format == "PNG"
    assert with_both.size == (960, 540)
    assert len(with_both.convert("RGB").getcolors(1 << 20)) > len(without.convert("RGB").getcolors(1 << 20))
