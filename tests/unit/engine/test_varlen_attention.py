"""All rows of a step in one call, over slots laid out for it: what the plain attention gives.

The kernel runs on CUDA devices only (tests/gpu); here plain operations of the same signature take its place.
"""

import pytest
import torch

from tests.unit.engine import varlen_reference
from tests.unit.engine.tiny_models import FAMILIES, build_model
from worker.engine.kv import choice, varlen_attention
from worker.engine.kv.layout import ChunkRows
from worker.engine.kv.slots import KVShape, KVSlots
from worker.engine.kv.token_major import TokenMajorSlots

CPU = torch.device("cpu")
SHAPE = KVShape(layers=2, heads=2, head_dim=8)


@pytest.fixture(autouse=True)
def reference_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen_attention, "varlen_attn", varlen_reference.varlen_attn)


def token_major() -> TokenMajorSlots:
    return TokenMajorSlots(SHAPE, slots=5, slot_tokens=32, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize("query_heads", [2, 6])
@pytest.mark.parametrize("window", [None, 1, 23])
def test_the_trial_accepts_a_kernel_that_agrees_with_the_plain_attention(
    query_heads: int, window: int | None
) -> None:
    assert choice.trial_fault(SHAPE, query_heads, torch.float32, CPU, window) is None


@pytest.mark.parametrize("wrong", [{"window_size": (7, 0)}, {"scale": 2.0}], ids=str)
def test_the_trial_refuses_a_kernel_that_computes_something_else(wrong: dict[str, object], monkeypatch) -> None:
    def other(*tensors, **options) -> torch.Tensor:
        return varlen_reference.varlen_attn(*tensors, **options | wrong)

    monkeypatch.setattr(varlen_attention, "varlen_attn", other)

    fault = choice.trial_fault(SHAPE, 2, torch.float32, CPU, None)

    assert fault is not None
    assert "differ from those of the plain attention" in fault


def test_the_trial_tells_why_a_kernel_does_not_run(monkeypatch) -> None:
    def missing(*_tensors, **_options) -> torch.Tensor:
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(varlen_attention, "varlen_attn", missing)

    assert "no kernel for this device" in str(choice.trial_fault(SHAPE, 2, torch.float32, CPU, None))


def test_rows_are_laid_out_piece_by_piece() -> None:
    """Two decoding rows, and a chunk of three tokens that follows seven."""
    rows = varlen_attention.varlen_rows(token_major(), [1, 4], [9, 0], [ChunkRows(slot=2, start=7, first=2, end=5)])

    assert rows.places.tolist() == [32 + 9, 4 * 32, 64 + 7, 64 + 8, 64 + 9]
    assert rows.query_ends.tolist() == [0, 1, 2, 5]
    assert rows.key_ends.tolist() == [0, 32, 64, 96]
    assert rows.table.tolist() == [[1], [4], [2]]
    assert rows.used.tolist() == [10, 1, 10]
    assert (rows.longest_query, rows.longest_key) == (3, 10)


def test_both_kinds_of_slots_are_written_parked_and_copied_alike() -> None:
    """Everything that is not attention goes through the same views."""
    seen = []
    for kv in (token_major(), KVSlots(SHAPE, slots=5, slot_tokens=32, dtype=torch.float32, device=CPU)):
        random = torch.Generator().manual_seed(0)
        keys, values = (torch.randn(2, 6, 8, generator=random) for _ in range(2))
        for layer in range(SHAPE.layers):
            kv.write_chunk(layer, 3, 2, keys, values)
            kv.write_rows(layer, torch.tensor([0, 3]), torch.tensor([1, 8]), keys[:, :2], values[:, :2])
        kv.copy_beginning(3, 1, 9)
        kv.restore(2, kv.park(1, 7))
        kv.clear(3)
        seen.append(torch.stack([*kv.keys, *kv.values]))

    assert torch.equal(*seen)
    assert seen[0][:, 2, :, 2:7].any()
    assert not seen[0][:, 3].any()


def test_slots_on_a_cpu_stay_as_they_are() -> None:
    """The layout for the kernel would make plain decoding copy the slots in each step."""
    assert (
        type(choice.slots_for(build_model(FAMILIES["llama"]()), slots=2, slot_tokens=256, gpu_kernels=True))
        is KVSlots
    )
