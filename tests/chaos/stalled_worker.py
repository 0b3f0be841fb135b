"""A program whose model hangs for real, or is slow, under the stall watch; it says what happens in its log."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tandem.specs import EmbeddingParameters, GenerationParameters
from tests.unit.encoders.tiny_models import tiny_model
from tests.unit.engine.tiny_models import FAMILIES, build_model
from worker.encoders import EncoderBatcher
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence
from worker.stall import ProgressSource, StallWatch, exit_stalled
from worker.tasks.feature_extraction import FeatureExtraction

STALL_SECONDS = 2.0
SLICE_SECONDS = 0.05
SLICES = 8
"""Of a slow forward, which takes 0.4 s: well within the limit. One long sleep would be over when a suspended
process goes on, and so would be the forward, before the watch could poll it."""
FORWARDS = 6
"""More slow forwards than fit the limit: 2.4 s."""
FORWARD, STOPPED, DONE = "forward", "renewing stopped", "done"
"""What it says."""


@dataclass(frozen=True)
class StalledOptions:
    folder: str
    serving: str
    """`engine` or `encoder`."""
    pace: str
    """How a forward goes: it `hangs` or `is_slow`."""


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def hang() -> None:
    say(FORWARD)
    threading.Event().wait()


def is_slow() -> None:
    """Says so halfway: by then the watch has polled, and will again before the end."""
    for number in range(SLICES):
        if number == SLICES // 2:
            say(FORWARD)
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


def main(options: StalledOptions) -> None:
    torch.set_num_threads(1)
    watch = StallWatch(STALL_SECONDS, lambda name: exit_stalled(name, lambda: say(STOPPED)))
    watch.start()
    {"engine": generate, "encoder": embed}[options.serving](watch, options.pace)
    watch.stop()
    say(DONE)
