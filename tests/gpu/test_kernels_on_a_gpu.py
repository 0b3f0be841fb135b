"""What takes the plain path's place on a CUDA device gives what that path gives, or is not taken."""

import logging

import pytest
import torch
from transformers import PreTrainedModel

from tests.unit.engine.tiny_models import FAMILIES, build_model
from worker.engine.adapters.grouped_update import NO_WAIT_CAPABILITY, grouping_fault
from worker.engine.kv import choice, varlen_attention
from worker.engine.kv.slots import KVShape, KVSlots
from worker.engine.kv.token_major import TokenMajorSlots
from worker.engine.recording import Recording

pytestmark = pytest.mark.gpu


def on_gpu(dtype: torch.dtype) -> PreTrainedModel:
    model = build_model(FAMILIES["llama"]())
    torch.nn.Module.to(model, "cuda", dtype)  # the model's own `to` has no usable type
    return model


@pytest.mark.parametrize("window", [None, 1, 23])
@pytest.mark.parametrize(("heads", "query_heads", "head_dim"), [(8, 32, 128), (3, 9, 64), (1, 8, 256)])
def test_flash_attention_agrees_with_the_plain_one(
    heads: int, query_heads: int, head_dim: int, window: int | None
) -> None:
    shape = KVShape(1, heads, head_dim)

    assert choice.trial_fault(shape, query_heads, torch.bfloat16, torch.device("cuda"), window) is None


def test_a_model_in_16_bits_gets_slots_for_flash_attention() -> None:
    model = on_gpu(torch.bfloat16)

    assert type(choice.slots_for(model, slots=2, slot_tokens=256, gpu_kernels=True)) is TokenMajorSlots


@pytest.mark.parametrize(("dtype", "slot_tokens"), [(torch.float32, 256), (torch.bfloat16, 250)])
def test_other_models_keep_plain_slots_for_a_reason_that_is_logged(
    dtype: torch.dtype, slot_tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    model = on_gpu(dtype)

    with caplog.at_level(logging.WARNING):
        assert type(choice.slots_for(model, slots=2, slot_tokens=slot_tokens, gpu_kernels=True)) is KVSlots

    assert "without flash attention" in caplog.text


def test_a_kernel_that_fails_its_trial_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = on_gpu(torch.bfloat16)
    monkeypatch.setattr(varlen_attention, "varlen_attn", lambda query, *_others, **_options: torch.zeros_like(query))

    with caplog.at_level(logging.WARNING):
        assert type(choice.slots_for(model, slots=2, slot_tokens=256, gpu_kernels=True)) is KVSlots

    assert "differ from those of the plain attention" in caplog.text


def test_grouped_products_are_used_where_they_wait_for_nothing() -> None:
    fault = grouping_fault(torch.bfloat16, torch.device("cuda"), 16, 576, 1536)

    if torch.cuda.get_device_capability()[0] >= NO_WAIT_CAPABILITY:
        assert fault is None
    else:
        assert fault is not None
        assert "wait for the host" in fault


def test_a_recording_computes_from_what_its_memory_holds() -> None:
    numbers = torch.arange(4.0, device="cuda")
    recording = Recording(lambda: numbers * 2, memory=torch.cuda.graph_pool_handle())
    assert recording.first.tolist() == [0, 2, 4, 6]

    numbers.fill_(5)

    assert recording().tolist() == [10] * 4


def test_work_that_waits_for_the_host_is_not_recorded() -> None:
    numbers = torch.arange(4.0, device="cuda")

    with pytest.raises(RuntimeError):
        Recording(lambda: numbers * numbers.sum().item(), memory=torch.cuda.graph_pool_handle())
