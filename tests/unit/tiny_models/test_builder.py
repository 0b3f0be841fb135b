"""What `build` promises: every task is served, models are small, and a seed means the same weights everywhere."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.pipelines import SUPPORTED_TASKS

from tests.tiny_models import TINY_MODELS, build
from worker.pipelines import OWN

DROPPED_TASKS = {
    "question-answering",
    "summarization",
    "translation",
    "text2text-generation",
    "visual-question-answering",
}
MOST_BYTES = 2_000_000


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_every_task_has_a_tiny_model() -> None:
    """The 25 tasks of transformers and the five that its version 5 dropped."""
    served = {task for model in TINY_MODELS.values() for task in model.tasks}
    # Another test may have registered our own pipelines for dropped tasks.
    own = {task for task in SUPPORTED_TASKS if task.startswith(OWN)}
    assert served == set(SUPPORTED_TASKS) - own | DROPPED_TASKS


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_model_is_small_and_the_same_each_time(
    name: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """A second build writes the same files; another seed writes other weights."""
    first = tiny_folder(name)
    assert sum(file.stat().st_size for file in first.iterdir()) < MOST_BYTES
    again = build(name, tmp_path / "again")
    assert {file.name: file.read_bytes() for file in again.iterdir()} == {
        file.name: file.read_bytes() for file in first.iterdir()
    }
    assert weights(build(name, tmp_path / "other", seed=1)) != weights(first)


def test_another_process_draws_the_same_weights(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing hangs on the order of a set or of a hash: a process with another hash seed writes the same files."""
    names = ("tiny-llama", "tiny-mbart", "tiny-clip", "tiny-detr")
    program = "\n".join(
        [
            "import sys",
            "from pathlib import Path",
            "from tests.tiny_models import build",
            *(f"build({name!r}, Path(sys.argv[1]) / {name!r})" for name in names),
        ]
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"},
    )
    for name in names:
        assert weights(tmp_path / name) == weights(tiny_folder(name))
        here, there = tiny_folder(name), tmp_path / name
        for file in ("tokenizer.json", "config.json"):
            if (here / file).exists():
                assert (there / file).read_bytes() == (here / file).read_bytes()


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    """And nothing is written."""
    with pytest.raises(KeyError, match="tiny-unknown"):
        build("tiny-unknown", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
