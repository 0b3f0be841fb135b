"""Decode steps that are recorded once and replayed: the text stays that of the plain engine.

Recording is for CUDA devices (tests/gpu). Here the operations of one run are traced, and each call repeats them on
the same memory: whatever the recorded step took from Python would stay as it was then.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tests.unit.engine import varlen_reference
from tests.unit.engine.adapter_folders import save_adapter
from tests.unit.engine.served_adapters import served_adapter
from tests.unit.engine.tiny_models import FAMILIES, Crowd, build_model, generate, random_prompts
from worker.engine.adapters.weights import AdapterWeights, read_adapter
from worker.engine.decode_graphs import RECORD_AT, Bucket, DecodeGraphs, DecodeStep, bucket_of, padded
from worker.engine.forward import Forward
from worker.engine.kv import varlen_attention
from worker.engine.kv.token_major import TokenMajorSlots
from worker.engine.recording import Work

pytestmark = pytest.mark.filterwarnings(
    # peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
SIZES = {"slots": 6, "slot_tokens": 4096}
COUNT = 20


class Repeated:
    """The traced operations of one run."""

    def __init__(self, work: Work) -> None:
        self.first = work()
        self._work = make_fx(work)()
        self.calls = 0

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        return self._work()


@dataclass
class GraphCrowd(Crowd):
    """An engine over slots for the kernel, whose decode steps are recorded."""

    graphs: DecodeGraphs
    made: list[Repeated]


@pytest.fixture
def recorded(crowd, monkeypatch):
    """Makes such engines."""
    monkeypatch.setattr(varlen_attention, "varlen_attn", varlen_reference.recordable_varlen_attn)

    def make(*, wrap=Repeated) -> GraphCrowd:
        model = build_model(FAMILIES["llama"]())
        # A recording of torch's operations does not see what kernels compute.
        engine = crowd(model, cpu_kernels=False).engine
        plain, bank, made = engine._kv, engine._bank, []
        kv = TokenMajorSlots(plain.shape, slots=4, slot_tokens=256, dtype=torch.float32, device=plain.device)

        def record(work: Work) -> Repeated:
            made.append(wrap(work))
            return made[-1]

        graphs = DecodeGraphs(model, kv, bank, record=record)
        forward = Forward(model, kv, bank)
        forward._graphs = graphs
        engine._kv, engine._forward = kv, forward
        for part in vars(engine).values():  # whoever else was handed the slots
            if getattr(part, "_kv", None) is plain:
                part._kv = kv
        return GraphCrowd(engine, graphs, made)

    return make


def other_layers_adapter(folder: Path) -> AdapterWeights:
    """A LoRA of layers that `served_adapter` leaves alone."""
    save_adapter(
        build_model(FAMILIES["llama"]()), folder / "other", seed=1, r=4, target_modules=["o_proj", "down_proj"]
    )
    return read_adapter("other", folder / "other", build_model(FAMILIES["llama"]()))


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (2, 2), (3, 4), (5, 6)])
def test_a_bucket_holds_a_power_of_two_of_rows_or_all_there_can_be(rows: int, expected: int) -> None:
    step = DecodeStep([1] * rows, [5] * rows, range(rows), [-1] * rows)

    assert bucket_of(step, tables=9, **SIZES) == Bucket(expected, 1024, None)


@pytest.mark.parametrize(("position", "expected"), [(0, 1024), (1023, 1024), (1024, 2048), (4095, 4096)])
def test_a_bucket_holds_the_longest_context(position: int, expected: int) -> None:
    step = DecodeStep([1, 1], [3, position], [0, 1], [-1, 2])

    assert bucket_of(step, tables=9, **SIZES) == Bucket(2, expected, 9)


def test_missing_rows_repeat_the_first() -> None:
    assert padded(DecodeStep([7, 8], [3, 4], [0, 2], [-1, 1]), 4) == DecodeStep(
        [7, 8, 7, 7], [3, 4, 3, 3], [0, 2, 0, 0], [-1, 1, -1, -1]
    )


def test_replayed_steps_write_what_generate_writes(recorded) -> None:
    """Prompts of many lengths come and go, so that rows, slots and buckets change under the recordings."""
    prompts = random_prompts((5, 17, 70, 9, 23, 31, 3))
    expected = [generate(build_model(FAMILIES["llama"]()), prompt, COUNT) for prompt in prompts]
    together = recorded()

    sequences = [together.submit(prompt, max_new_tokens=COUNT) for prompt in prompts]
    together.run()

    assert [list(sequence.future.result(0).token_ids) for sequence in sequences] == expected
    assert together.graphs.fault is None
    assert sum(recording.calls for recording in together.made) > 10


def test_an_adapter_that_comes_later_is_replayed_too(recorded, tmp_path, crowd) -> None:
    """It may change other layers than any before it, and which rows have an adapter changes as well."""
    first = served_adapter(tmp_path, "first", seed=0)
    second = other_layers_adapter(tmp_path)
    prompts = random_prompts((6, 11, 20))
    together, plain = recorded(), crowd(build_model(FAMILIES["llama"]()))
    for adapters in ((first, None, first), (None, second, first), (second, second, None), (None, None, None)):
        results = []
        for engine in (together, plain):
            sequences = [
                engine.submit(prompt, adapter=adapter, max_new_tokens=COUNT)
                for prompt, adapter in zip(prompts, adapters, strict=True)
            ]
            engine.run()
            results.append([sequence.future.result(0).token_ids for sequence in sequences])
        assert results[0] == results[1]

    assert {bucket.tables is None for bucket in together.graphs.buckets} == {True, False}
    assert together.graphs.fault is None


def test_a_bucket_is_recorded_when_it_has_come_again(recorded) -> None:
    together = recorded()
    together.generate([5, 6, 7], max_new_tokens=RECORD_AT)  # the first token is the prompt's
    assert together.graphs.buckets == ()

    together.generate([5, 6, 7], max_new_tokens=2)

    assert together.graphs.buckets == (Bucket(1, 256, None),)


@pytest.mark.parametrize("failure", ["raises", "differs"])
def test_work_that_cannot_be_recorded_is_computed_eagerly(failure: str, recorded, caplog) -> None:
    """The text is the same, and the reason is logged once."""

    class Failing(Repeated):
        def __init__(self, work: Work) -> None:
            if failure == "raises":
                raise RuntimeError("operation not permitted when stream is capturing")
            super().__init__(work)

        def __call__(self) -> torch.Tensor:
            return super().__call__().flip(-1)

    together = recorded(wrap=Failing)

    result = together.generate([9, 8, 7], max_new_tokens=COUNT)

    assert list(result.token_ids) == generate(build_model(FAMILIES["llama"]()), [9, 8, 7], COUNT)
    assert [record.message for record in caplog.records if "without CUDA graphs" in record.message] == [
        together.graphs.fault
    ]
