"""Every example runs as it stands, against a whole running service."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str, environment: dict[str, str], code: int = 0) -> str:
    """What an example prints; it finds the service as a user's would, by the environment."""
    ended = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
        check=False,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    return ended.stdout


def unframed(shown: str) -> str:
    """The text in a frame as one line: where its lines break hangs on how long the test's paths are."""
    return " ".join(shown.replace("│", " ").split())


def test_chat(service_environment: dict[str, str]) -> None:
    shown = run("01_chat.py", environment=service_environment)
    answer, streamed = re.search(r"answer: (.+)", shown), re.search(r"streamed: (.+)", shown)
    assert answer is not None
    assert streamed is not None
    assert "Paris" in answer[1]
    assert answer[1] == streamed[1]


def test_embeddings(service_environment: dict[str, str]) -> None:
    shown = run("02_embeddings.py", environment=service_environment)
    assert "3 vectors of 384 numbers" in shown
    alike, different = (float(value) for value in re.findall(r"^(-?\d\.\d\d)  ", shown, flags=re.MULTILINE))
    assert alike > 0.5 > different


def test_map_many(service_environment: dict[str, str]) -> None:
    lines = run("03_map_many.py", environment=service_environment).splitlines()
    starts = [line for line in lines if re.match(r"What is \d plus \d\?  .", line)]
    assert [line[8] for line in starts] == list("12345678")
    assert [line for line in starts if "error invalid_request: `inputs`" in line] == [starts[3]]


def test_finetune(service_environment: dict[str, str]) -> None:
    shown = run("04_finetune.py", environment=service_environment)
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+)", shown)]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    base = re.search(r"^smollm2-135m-instruct: (.+)", shown, flags=re.MULTILINE)
    adapter = re.search(r"^ft:\S+: (.+)", shown, flags=re.MULTILINE)
    assert base is not None
    assert adapter is not None
    assert "Barnacle" in adapter[1]
    assert "Barnacle" not in base[1]


def test_openai_sdk(service_environment: dict[str, str]) -> None:
    shown = run("05_openai_sdk.py", environment=service_environment)
    answer, streamed = re.search(r"answer: (.+)", shown), re.search(r"streamed: (.+)", shown)
    assert answer is not None
    assert streamed is not None
    assert answer[1] == streamed[1]
    assert "embeddings: 2 of 384 numbers" in shown
    assert re.search(r'file: file-[0-9a-f]{24} \{"prompt": "Ahoy"', shown)


def test_the_demo_says_which_step_failed_and_where_the_logs_are(tmp_path: Path) -> None:
    """Here the service cannot start: there are no models."""
    environment = {"TANDEM_MODELS_DIR": str(tmp_path / "empty")}
    options = ("--home", str(tmp_path / "home"), "--output", str(tmp_path / "output"))
    shown = unframed(run("demo.py", *options, environment=environment, code=1))
    assert "Failed before the first step" in shown
    assert "make install" in shown
    assert "home/logs" in shown


def test_the_demo_empties_nobodys_home(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data", encoding="utf-8")
    shown = unframed(run("demo.py", "--home", str(tmp_path), environment={}, code=1))
    assert "is not empty" in shown
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "data"
