"""Conversations for fine-tuning out of the chatterbot-corpus package: deduplicated, and split by question.

Many of its questions have several answers. A split by row would put one question into both parts, and the held-out
loss would then measure memory; so all rows of a question go to the same side. Its data files are read and its code
is not run.

    python examples/chatterbot.py folder     writes folder/train.jsonl and folder/held-out.jsonl
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

HELD_OUT_PERCENT = 15
"""Of the questions: about a hundred, enough for a loss that does not hang on single ones."""


@dataclass(frozen=True, slots=True)
class Exchange:
    question: str
    answer: str

    @property
    def row(self) -> dict[str, list[dict[str, str]]]:
        """The row of a training file."""
        return {
            "messages": [
                {"role": "user", "content": self.question},
                {"role": "assistant", "content": self.answer},
            ]
        }


@dataclass(frozen=True, slots=True)
class Split:
    training: list[Exchange]
    held_out: list[Exchange]


def load() -> Split:
    """The English corpus, split. Raises FileNotFoundError if the package is not installed."""
    return split(exchanges(corpus_folder().glob("*.yml")))


def corpus_folder() -> Path:
    """Where the English conversations lie. Raises FileNotFoundError if the package is not installed."""
    package = importlib.util.find_spec("chatterbot_corpus")
    for location in (package.submodule_search_locations or []) if package else []:
        folder = Path(location) / "data" / "english"
        if folder.is_dir():
            return folder
    raise FileNotFoundError("chatterbot-corpus is not installed; run `make install`")


def exchanges(files: Iterable[Path]) -> list[Exchange]:
    """The distinct first exchanges of all conversations, in a fixed order; longer conversations are cut to them.

    Answers of several lines are left out: they are programs, whose many tokens would hide the conversations' loss.
    """
    found: dict[tuple[str, str], Exchange] = {}
    for path in sorted(files):
        for question, answer, *_ in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            exchange = Exchange(str(question).strip(), str(answer).strip())
            if exchange.question and exchange.answer and "\n" not in exchange.answer:
                found.setdefault((question_key(exchange.question), exchange.answer), exchange)
    return list(found.values())


def split(rows: Iterable[Exchange]) -> Split:
    """Held out is what a question's own digest says: the same questions on every machine, whatever else there is."""
    parts = Split([], [])
    for exchange in rows:
        digest = hashlib.sha256(question_key(exchange.question).encode()).digest()
        is_held_out = int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT
        (parts.held_out if is_held_out else parts.training).append(exchange)
    return parts


def question_key(question: str) -> str:
    """What makes two questions the same: their letters and digits, whatever the case, spaces and punctuation."""
    return " ".join("".join(char if char.isalnum() else " " for char in question.casefold()).split())


def write(path: Path, rows: Iterable[Exchange]) -> None:
    path.write_text(
        "".join(json.dumps(exchange.row, ensure_ascii=False) + "\n" for exchange in rows), encoding="utf-8"
    )


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    data = load()
    write(target / "train.jsonl", data.training)
    write(target / "held-out.jsonl", data.held_out)
    print(len(data.training), "rows to train on,", len(data.held_out), "held out, in", target)
