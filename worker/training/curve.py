"""The course of a training as files: a table and a picture of its loss."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
"""Those of OpenAI's result files."""
ACCURACIES = ("mean_token_accuracy", "accuracy", "rewards/accuracies", "exact_match")
"""The figure that stands for a task's accuracy: the first of these that it has."""
SIZE_INCHES = (8.0, 4.5)
DOTS_PER_INCH = 120

Event = Mapping[str, Any]


def loss_table(history: Iterable[Event]) -> bytes:
    """CSV with a line for each step that was measured or evaluated; what was not is left empty."""
    rows: dict[int, dict[str, Any]] = {}
    for event in history:
        row = rows.setdefault(event["step"], {"step": event["step"]})
        if event["type"] == "metrics":
            row["train_loss"], row["train_accuracy"] = event["loss"], _accuracy(event)
        elif event["type"] == "evaluation":
            row["valid_loss"], row["valid_mean_token_accuracy"] = event["loss"], _accuracy(event)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows[step] for step in sorted(rows))
    return text.getvalue().encode()


def loss_picture(history: Sequence[Event], title: str) -> bytes:
    """A PNG of the training's loss and, where there is one, of the validation loss."""
    # Loaded here: it takes half a second. The figure is made without pyplot, which keeps its figures in the process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    for kind, label, style in (("metrics", "training", "-"), ("evaluation", "validation", "o--")):
        points = [(event["step"], event["loss"]) for event in history if event["type"] == kind]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss (nats)", title=title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _accuracy(event: Event) -> float | str:
    return next((event[name] for name in ACCURACIES if name in event), "")
