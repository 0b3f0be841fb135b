"""Each kernel computes what torch's operations do: in float32 to the last bits, in bfloat16 but for rounding."""

import math
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from worker.engine import kernels
from worker.engine.kernels import choice, kernel, trial
from worker.engine.kernels.choice import Kernels, kernels_fault
from worker.engine.kernels.few_rows import MOST_ROWS, FewRows
from worker.engine.kernels.gate import silu_times
from worker.engine.kernels.intrinsics import integer, take
from worker.engine.kernels.largest import VALUES_AT_ONCE, largest
from worker.engine.kernels.norm import rms_norm
from worker.engine.kernels.pair_update import add_pairs
from worker.engine.kernels.rotation import rotate
from worker.engine.kernels.row_attention import attend_rows
from worker.engine.kernels.tiles import HAS_PAIRS
from worker.engine.linears.packed import PackedProduct

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
ROWS = pytest.mark.parametrize("rows", [1, 5, 150])
"""One row, a few, and enough for both threads."""


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def fresh_trial() -> Iterator[None]:
    """The trial's answer is kept for the process; a test that changes it must not leave its own behind."""
    choice._tried.cache_clear()
    yield
    choice._tried.cache_clear()


def draw(*size: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-6 in float32, and in bfloat16 but for a rounding step here and there."""
    assert found.dtype == expected.dtype
    if found.dtype == torch.float32:
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)
    else:
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
        assert (found == expected).float().mean() > 0.99


@DTYPES
@ROWS
@pytest.mark.parametrize("width", [24, 577])
def test_normalization_is_llamas_and_gemmas(rows: int, width: int, dtype: torch.dtype) -> None:
    layer_input = draw(1, rows, width, dtype=dtype)
    llama, gemma = LlamaRMSNorm(width, eps=1e-5).to(dtype), GemmaRMSNorm(width, eps=1e-5).to(dtype)
    llama.weight.copy_(1 + draw(width) / 4)
    gemma.weight.copy_(draw(width) / 4)

    assert_same(rms_norm(layer_input, llama.weight, 1e-5), llama(layer_input))
    assert_same(rms_norm(layer_input, gemma.weight, 1e-5, one_more=True), gemma(layer_input))


@DTYPES
@ROWS
def test_the_gate_reads_its_columns_where_they_lie(rows: int, dtype: torch.dtype) -> None:
    gate, up = (8 * draw(1, rows, 2 * 203, dtype=dtype)).split(203, dim=-1)

    assert_same(silu_times(gate, up), F.silu(gate) * up)


def test_the_gate_holds_for_large_inputs_and_passes_on_what_is_not_a_number() -> None:
    """Beyond 88 the exponential of a float32 is infinite."""
    gate = torch.tensor([[-1000.0, -90.0, -87.5, 0.0, 87.5, 90.0, 1000.0, float("nan")] * 5])
    up = torch.ones_like(gate)

    found = silu_times(gate, up)

    torch.testing.assert_close(found, F.silu(gate), equal_nan=True)


@DTYPES
@ROWS
def test_rotation_turns_queries_and_keys_in_place(rows: int, dtype: torch.dtype) -> None:
    """Both are columns of one product, as q, k and v are."""
    joined = draw(rows, 64 + 32 + 32, dtype=dtype)
    angles = draw(rows, 8).repeat(1, 2)
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    query, key, value = joined.split([64, 32, 32], dim=-1)
    by_head = [each.clone().view(1, rows, -1, 16).transpose(1, 2) for each in (query, key)]
    turned = apply_rotary_pos_emb(*by_head, cosine[None], sine[None])
    untouched = value.clone()

    rotate(query, key, cosine, sine)

    for found, expected in zip((query, key), turned, strict=True):
        assert_same(found, expected[0].transpose(0, 1).reshape(rows, -1))
    assert torch.equal(value, untouched)


@DTYPES
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize(("group", "width"), [(1, 32), (3, 64), (7, 96), (2, 24), (4, 10)])
def test_rows_attend_to_their_own_slots(group: int, width: int, window: int | None, dtype: torch.dtype) -> None:
    """Widths of 32 and its multiples are computed in registers, others in loops; one row stands at a slot's end."""
    heads, rows, slot_tokens = 2, 6, 75
    keys, values = (draw(8, heads, slot_tokens, width, dtype=dtype, seed=seed) for seed in (1, 2))
    slots, positions = torch.tensor([6, 0, 3, 7, 1, 2]), torch.tensor([0, 74, 16, 33, 15, 50])
    # As a model hands them over: views of one product, whose rows lie side by side.
    query, key, value = (
        each.view(rows, -1, width).transpose(0, 1)
        for each in draw(rows, (group + 2) * heads * width, dtype=dtype).split(
            [group * heads * width, heads * width, heads * width], dim=-1
        )
    )
    expected_keys, expected_values = keys.clone(), values.clone()
    expected_keys[slots, :, positions], expected_values[slots, :, positions] = (
        key.transpose(0, 1),
        value.transpose(0, 1),
    )
    out = torch.empty(rows, group * heads, width, dtype=dtype)

    attend_rows(
        (keys, values), slots, positions, query, key, value, window=window, scale=0.3, used=slot_tokens, out=out
    )

    assert torch.equal(keys, expected_keys)
    assert torch.equal(values, expected_values)
    for row, (slot, last) in enumerate(zip(slots.tolist(), positions.tolist(), strict=True)):
        seen = slice(0 if window is None else max(0, last - window + 1), last + 1)
        expected = F.scaled_dot_product_attention(
            query[:, row, None].float(),
            keys[slot, :, seen].float(),
            values[slot, :, seen].float(),
            scale=0.3,
            enable_gqa=True,
        )[:, 0]
        torch.testing.assert_close(
            out[row].float(), expected, atol=1e-6 if dtype == torch.float32 else 0.01, rtol=0.01
        )


def test_values_that_are_not_numbers_stay_in_their_row() -> None:
    keys, values = draw(2, 1, 40, 32, seed=1), draw(2, 1, 40, 32, seed=2)
    query, key, value = draw(1, 2, 32), draw(1, 2, 32, seed=5), draw(1, 2, 32, seed=6)
    keys[0, 0, 3] = float("nan")
    out = torch.empty(2, 1, 32)
    slots = torch.tensor([0, 1])

    attend_rows(
        (keys, values), slots, torch.tensor([20, 20]), query, key, value, window=None, scale=1, used=21, out=out
    )

    assert bool(out[0].isnan().all())
    assert bool(out[1].isfinite().all())


@DTYPES
@ROWS
@pytest.mark.parametrize("width", [7, VALUES_AT_ONCE, 3 * VALUES_AT_ONCE + 5])
def test_of_equal_logits_the_first_is_the_largest_as_for_torch(rows: int, width: int, dtype: torch.dtype) -> None:
    """In bfloat16 a few hundred values have equals among them, and here the largest one has some in every row."""
    logits = (4 * draw(rows, width + 3, dtype=dtype))[:, 3:].clamp(max=2.0)
    logits[0] = -30.0  # all are equal

    tokens, totals = largest(logits)

    assert torch.equal(tokens, logits.argmax(dim=-1))
    torch.testing.assert_close(totals, logits.float().logsumexp(dim=-1))


@DTYPES
def test_zeros_of_either_sign_are_equal_and_minus_infinity_is_never_chosen(dtype: torch.dtype) -> None:
    logits = torch.full((2, 2 * VALUES_AT_ONCE), -math.inf, dtype=dtype)
    logits[0, 700], logits[0, 701], logits[1, -1] = -0.0, 0.0, -3e38

    tokens, totals = largest(logits)

    assert tokens.tolist() == logits.argmax(dim=-1).tolist() == [700, 2 * VALUES_AT_ONCE - 1]
    torch.testing.assert_close(totals, logits.float().logsumexp(dim=-1))


@DTYPES
@pytest.mark.parametrize(
    ("broken", "first"), [(math.nan, 999), (-math.nan, 600), (math.inf, 999), (-math.inf, 0)], ids=str
)
def test_logits_that_are_not_finite_spoil_the_logprob_of_their_row_alone(
    broken: float, first: int, dtype: torch.dtype
) -> None:
    logits = draw(3, 1000, dtype=dtype)
    logits[1, first:] = broken

    tokens, totals = largest(logits)

    assert torch.equal(tokens[::2], logits.argmax(dim=-1)[::2])
    logprobs = logits.gather(1, tokens[:, None])[:, 0].float() - totals
    assert logprobs.isfinite().tolist() == [True, False, True]


@DTYPES
@ROWS
def test_each_row_gets_the_update_of_its_own_adapter(rows: int, dtype: torch.dtype) -> None:
    """Ranks of 8, 3 and 0 in a table of rank 8; rows of the base stay bit for bit. Inputs and outputs are views."""
    a, b = draw(24, 40, dtype=dtype) / 6, draw(24, 50, dtype=dtype, seed=4)
    layer_input, output = draw(rows, 90, dtype=dtype)[:, 20:60], draw(rows, 70, dtype=dtype, seed=5)[:, 10:60]
    ranks, slots = torch.tensor([8, 3, 0]), torch.arange(rows) % 4 - 1
    expected = output.clone()
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            own = slice(8 * slot, 8 * slot + int(ranks[slot]))
            low = torch.mm(layer_input[row : row + 1], a[own].t())
            expected[row : row + 1] = torch.addmm(expected[row : row + 1], low, b[own])
    base = output[slots < 0].clone()

    add_pairs(layer_input, output, a, b, slots, ranks, 8)

    assert torch.equal(output[slots < 0], base)
    torch.testing.assert_close(output, expected, atol=5e-6 if dtype == torch.float32 else 0.05, rtol=0.01)


needs_pairs = pytest.mark.skipif(not HAS_PAIRS, reason="the processor has no products of bfloat16 pairs")


@needs_pairs
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 6, 7, 31, MOST_ROWS])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 64), (100, 70), (33, 2), (256, 576)])
def test_few_rows_are_multiplied_over_the_packed_weight(outputs: int, inputs: int, rows: int) -> None:
    weight, bias = draw(outputs, inputs, dtype=torch.bfloat16), draw(outputs, dtype=torch.bfloat16, seed=4)
    layer_input = draw(1, rows, inputs + 6, dtype=torch.bfloat16, seed=5)[..., 2 : inputs + 2]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    for own in (bias, None):
        found, expected = FewRows(packed, outputs, inputs, own)(layer_input), F.linear(layer_input, weight, own)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.01)


@needs_pairs
def test_a_row_has_the_same_product_in_any_company() -> None:
    weight = draw(576, 1536, dtype=torch.bfloat16)
    product = FewRows(torch.ops.mkldnn._reorder_linear_weight(weight), 576, 1536, None)
    rows = draw(31, 1536, dtype=torch.bfloat16, seed=5)

    together = product(rows)

    assert all(torch.equal(product(rows[row : row + 1])[0], together[row]) for row in range(31))


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_of_torch_share_the_work(two_threads: None) -> None:
    """Which of them computes a row changes none of its bits."""
    assert kernel._openmp() is not None
    layer_input, weight = draw(400, 600), draw(600)
    together = rms_norm(layer_input, weight, 1e-6)
    torch.set_num_threads(1)
    alone = rms_norm(layer_input, weight, 1e-6)
    assert torch.equal(together, alone)

    torch.set_num_threads(2)
    started = torch.zeros(1, dtype=torch.int64)
    STARTS.in_parallel(started.data_ptr())
    assert started.item() == 2


def _count_starts(block: int) -> None:
    take(integer(block, 1))


STARTS = kernel.Kernel(_count_starts)
"""Counts how many threads run it."""


@needs_pairs
def test_a_weight_that_is_packed_in_another_order_keeps_onednns_product() -> None:
    """The trial has seen one shape; each layer's own product is compared when its weight is packed."""
    found = trial.tried(torch.bfloat16)
    assert isinstance(found, Kernels)
    weight, layer_input = draw(64, 40, dtype=torch.bfloat16), draw(3, 40, dtype=torch.bfloat16, seed=5)
    expected = F.linear(layer_input, weight)

    def disordered(packed: torch.Tensor, _weight: torch.Tensor, _bias: torch.Tensor | None) -> choice.Product:
        return lambda rows: FewRows(packed, 64, 40, None)(rows).flip(-1)

    def other_size(*_: object) -> choice.Product:
        raise AttributeError("oneDNN packs this weight in another order")

    for few_rows in (disordered, other_size):
        product = PackedProduct(weight, None, replace(found, few_rows=few_rows))
        torch.testing.assert_close(product(layer_input), expected, atol=0.02, rtol=0.01)


def test_every_kernel_passes_its_trial() -> None:
    for dtype in choice.DTYPES:
        assert kernels_fault(dtype) is None
    found = trial.tried(torch.bfloat16)
    assert isinstance(found, Kernels)
    assert (found.few_rows is not None) == HAS_PAIRS


def test_there_are_no_kernels_for_other_dtypes() -> None:
    assert kernels_fault(torch.float16) == "there are no kernels for torch.float16"


@pytest.mark.parametrize("wrong", ["rms_norm", "silu_times", "attend_rows", "add_pairs", "rotate", "largest"])
def test_a_kernel_that_computes_something_else_is_found(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.full((1,), math.nan)

    def broken(*arguments: torch.Tensor, **options: object) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return (nothing, nothing) if wrong == "largest" else nothing  # those that write in place write nothing

    monkeypatch.setattr(trial, wrong, broken)

    assert "differs from torch's operations by" in str(trial.tried(torch.float32))


def test_without_numba_there_are_no_kernels(
    fresh_trial: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(kernels, "trial")
    monkeypatch.setitem(sys.modules, "worker.engine.kernels.trial", None)  # so that importing it fails

    assert "numba is not there" in str(kernels_fault(torch.float32))
    assert "run without kernels" in caplog.text


def test_what_fails_to_compile_leaves_the_plain_operations(
    fresh_trial: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_dtype: torch.dtype) -> Kernels:
        raise NotImplementedError("no code for this processor")

    monkeypatch.setattr(trial, "tried", fails)

    assert "no code for this processor" in str(kernels_fault(torch.bfloat16))
