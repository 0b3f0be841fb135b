"""The loss curve, drawn with characters."""

from collections.abc import Sequence

from rich.text import Text

WIDTH = 72
"""Columns: fits a terminal of 80 with room at its side."""
HEIGHT = 16
"""Rows, with axes and labels."""
WINDOWS = 20
"""How many means, each of as many steps as that takes, make the line: few enough that it shows where it goes."""
POINTS_NEEDED = 2
"""One point is no curve."""
Point = tuple[int, float]
"""A step and the loss there."""


def loss_chart(
    training: Sequence[Point], held_out: Sequence[Point], *, width: int = WIDTH, height: int = HEIGHT
) -> Text | None:
    """The training's loss as a line and the held-out loss as dots; None where there is no curve to see."""
    if len(training) < POINTS_NEEDED:
        return None
    # Loaded here: it takes a third of a second, and most commands draw nothing.
    import plotext

    window = max(len(training) // WINDOWS, 1)
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    line = figure.signal(
        *zip(*running_mean(training, window), strict=True), marker=plotext.marker("hd", pixel="cyan+")
    )
    line.lines()
    figure.draw(line)
    if held_out:
        figure.draw(figure.signal(*zip(*held_out, strict=True), marker=plotext.marker("●", pixel="orange+")))
    figure.label("step")
    figure.plot_size(width, height)
    # A legend of plotext's would hide a part of the curve.
    mean = f" (mean of {window} steps)" if window > 1 else ""
    heading = Text.assemble("loss   ", ("▚ training", "bright_cyan"), mean)
    if held_out:
        heading.append("   ").append("● held out", "bright_yellow")
    return heading.append("\n").append_text(Text.from_ansi(figure.build().string()))


def extend(curve: list[Point], point: Point) -> None:
    """Add a point; a later attempt's takes the place of all that were at its step and after it."""
    while curve and curve[-1][0] >= point[0]:
        curve.pop()
    curve.append(point)


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Each point with the mean of up to `window` values that end there: single batches differ more than steps do."""
    values = [value for _, value in points]
    means = (values[max(end - window, 0) : end] for end in range(1, len(values) + 1))
    return [(step, sum(part) / len(part)) for (step, _), part in zip(points, means, strict=True)]
