"""A model that hangs for real: the stall watch ends the process. One that is slow, or was suspended, goes on.

Run as a program (`python -m tests.chaos.test_stalled_worker SERVING PACE`) this file is the process that is watched.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tandem.specs import EmbeddingParameters, GenerationParameters
from tests.unit.encoders.tiny_models import tiny_model
from tests.unit.engine.tiny_models import FAMILIES, build_model
from worker.encoders import EncoderBatcher
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.stall import STALLED_EXIT, ProgressSource, StallWatch, exit_stalled
from worker.tasks.feature_extraction import FeatureExtraction

STALL_SECONDS = 1.0
SLICE_SECONDS = 0.05
SLICES = 8
"""Of a slow forward, which takes 0.4 s: well within the limit. One long sleep would be over when a suspended
process goes on, and so would be the forward, before the watch could poll it."""
FORWARDS = 6
"""More slow forwards than fit the limit: 2.4 s."""
SUSPENDED_SECONDS = 3.0
PATIENCE_SECONDS = 120.0
"""For a process that imports torch on a busy machine."""
REPOSITORY = Path(__file__).parents[2]


@contextmanager
def watched(serving: str, pace: str) -> Iterator["subprocess.Popen[str]"]:
    """The process, once its model is in its first forward."""
    command = [sys.executable, "-m", "tests.chaos.test_stalled_worker", serving, pace]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "forward\n", process.communicate(timeout=PATIENCE_SECONDS)[1]
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("serving", ["engine", "encoder"])
def test_a_forward_that_hangs_ends_the_process_with_its_stacks(serving: str) -> None:
    """The leases are given up first; the stacks show the thread that hangs, and where."""
    with watched(serving, "hangs") as process:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert process.returncode == STALLED_EXIT
    assert output == "renewing stopped\n"
    assert f"tiny {serving} has stood still" in errors
    stacks = errors.split("has stood still")[1]
    assert "in hang" in stacks
    assert {"engine": "worker/engine/forward.py", "encoder": "worker/encoders/batcher.py"}[serving] in stacks


@pytest.mark.parametrize("serving", ["engine", "encoder"])
def test_slow_forwards_that_end_are_no_stall(serving: str) -> None:
    """The work as a whole takes far longer than the limit, each forward does not."""
    with watched(serving, "is_slow") as process:
        started = time.monotonic()
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, output) == (0, "forward\n" * (FORWARDS - 1) + "done\n"), errors
    assert time.monotonic() - started > 2 * STALL_SECONDS


def test_a_suspended_process_goes_on_where_it_stood() -> None:
    """SIGSTOP for three times the limit, as a laptop that sleeps; after SIGCONT the same forward still runs."""
    with watched("engine", "is_slow") as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(SUSPENDED_SECONDS)  # there is no event in a process that does not run
        process.send_signal(signal.SIGCONT)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)

    assert (process.returncode, output) == (0, "forward\n" * (FORWARDS - 1) + "done\n"), errors


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def hang() -> None:
    say("forward")
    threading.Event().wait()


def is_slow() -> None:
    """Says so halfway: by then the watch has polled, and will again before the end."""
    for number in range(SLICES):
        if number == SLICES // 2:
            say("forward")
        time.sleep(SLICE_SECONDS)


PACES: dict[str, Callable[[], None]] = {"hangs": hang, "is_slow": is_slow}


def slow_down(model: torch.nn.Module, pace: str) -> None:
    """Let each forward take the time of the pace, as a bad kernel would."""
    model.register_forward_pre_hook(lambda *_: PACES[pace]())


def generate(watch: StallWatch, pace: str) -> None:
    """As many tokens as there are forwards, by an engine."""
    model = build_model(FAMILIES["llama"]())
    slow_down(model, pace)
    _, tokenizer = tiny_model("roberta", "fill-mask")
    # Kernels are compared with the model's own forward when the engine is made, and would hang there.
    sizes = {"sequence_slots": 1, "slot_tokens": 64, "step_tokens": 8, "adapter_slots": 0, "adapter_rank": 1}
    engine = Engine(model, tokenizer, cpu_kernels=False, **sizes)
    loop = EngineLoop(engine)
    watch.add(ProgressSource("tiny engine", loop.is_busy, loop.progress))
    loop.start()
    sequence = Sequence(range(1, 6), GenerationParameters(max_new_tokens=FORWARDS))
    loop.submit(sequence)
    sequence.future.result()
    loop.stop()


def embed(watch: StallWatch, pace: str) -> None:
    """One text a forward, by a batcher whose token budget holds no two."""
    model, tokenizer = tiny_model("bert", "feature-extraction")
    slow_down(model, pace)
    batcher = EncoderBatcher(FeatureExtraction(model, tokenizer), budget=1, max_wait_seconds=0.0)
    watch.add(ProgressSource("tiny encoder", batcher.is_busy, batcher.progress))
    batcher.start()
    batcher.run(["yes"] * FORWARDS, EmbeddingParameters())
    batcher.stop()


def main(serving: str, pace: str) -> None:
    torch.set_num_threads(1)
    watch = StallWatch(STALL_SECONDS, lambda name: exit_stalled(name, lambda: say("renewing stopped")))
    watch.start()
    {"engine": generate, "encoder": embed}[serving](watch, pace)
    watch.stop()
    say("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
