"""The demo's data set: nothing of the held-out part may be known from the training part."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.chatterbot import Exchange, exchanges, load, question_key, split
from tandem.training_rows import check_rows


def test_no_question_is_in_both_parts() -> None:
    data = load()
    training = {question_key(exchange.question) for exchange in data.training}
    held_out = {question_key(exchange.question) for exchange in data.held_out}
    assert training & held_out == set()
    assert 0.12 < len(held_out) / (len(training) + len(held_out)) < 0.18


def test_no_exchange_is_there_twice() -> None:
    """The corpus repeats its tech_support rows a hundred times."""
    data = load()
    rows = [(question_key(exchange.question), exchange.answer) for exchange in data.training + data.held_out]
    assert len(set(rows)) == len(rows) > 700


@pytest.mark.parametrize("other", ["What is AI?", "what is ai", "WHAT IS  AI!"])
def test_a_question_in_another_spelling_stays_on_its_side(other: str) -> None:
    data = split([Exchange("What is AI?", "one"), Exchange(other, "two")])
    assert 0 in (len(data.training), len(data.held_out))


def test_the_split_does_not_depend_on_what_else_there_is() -> None:
    whole = load()
    part = split(whole.held_out[:3] + whole.training[:3])
    assert (part.held_out, part.training) == (whole.held_out[:3], whole.training[:3])


def test_a_longer_conversation_gives_its_first_exchange(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("conversations:\n- [Hi, Hello, Who's there]\n- [Hi, Hello]\n", encoding="utf-8")
    assert exchanges(tmp_path.glob("*.yml")) == [Exchange("Hi", "Hello")]


def test_programs_are_left_out() -> None:
    data = load()
    assert not [exchange for exchange in data.training + data.held_out if "\n" in exchange.answer]


def test_the_files_that_it_writes_can_be_trained_on(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "examples" / "chatterbot.py"
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    data = load()
    for name, rows in (("train.jsonl", data.training), ("held-out.jsonl", data.held_out)):
        content = (tmp_path / name).read_bytes()
        assert check_rows([content]) == len(rows)
        assert json.loads(content.splitlines()[0]) == rows[0].row
