"""What a benchmark leaves: tables in Markdown, as docs/benchmarks.md shows them, and a file of JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with its title; the first column is text, the others are numbers."""
    print(f"\n### {title}\n")
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *([str(cell) for cell in row] for row in rows)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines), flush=True)


def keep(path: Path, figures: Mapping[str, Any], *, quick: bool) -> None:
    """Write the figures, unless they are those of a trial run."""
    if quick:
        print(f"\n{path} is left as it was: a quick run shows that everything runs, and measures nothing")
        return
    path.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    print(f"\nwritten to {path}")
