"""8-bit products: near the exact ones, the same in any batch, and refused where the processor cannot make them."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from worker.engine.linears import int8
from worker.engine.linears.int8 import LARGEST, Int8Product, int8_fault

needs_int8 = pytest.mark.skipif(int8_fault() is not None, reason=f"8-bit products: {int8_fault()}")


def drawn(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def fresh_trial() -> Iterator[None]:
    """The trial's answer is kept for the process; a test that changes it must not leave its own behind."""
    int8_fault.cache_clear()
    yield
    int8_fault.cache_clear()


@needs_int8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_products_are_within_a_few_percent(rows: int, dtype: torch.dtype) -> None:
    weight, bias, layer_input = drawn(96, 128, seed=1), drawn(96, seed=2), drawn(1, rows, 128, seed=3)
    expected = F.linear(layer_input, weight, bias)

    found = Int8Product(weight.to(dtype), bias.to(dtype))(layer_input.to(dtype))

    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert (found.float() - expected).norm() / expected.norm() < 0.02


@needs_int8
def test_values_that_8_bits_can_hold_are_exact() -> None:
    """Whole numbers up to 127, which every row and every output reaches: all scales are 1."""
    random = torch.Generator().manual_seed(6)
    weight = torch.randint(-LARGEST, LARGEST + 1, (33, 70), generator=random).float()
    layer_input = torch.randint(-LARGEST, LARGEST + 1, (9, 70), generator=random).float()
    weight[:, 0] = layer_input[:, 1] = -LARGEST

    assert torch.equal(Int8Product(weight, None)(layer_input), F.linear(layer_input, weight))


@needs_int8
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_row_gives_the_same_bits_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    product = Int8Product(drawn(64, 200, dtype=dtype), drawn(64, dtype=dtype))
    batch = drawn(80, 200, seed=8, dtype=dtype) * torch.logspace(-3, 3, 80)[:, None].to(dtype)
    together = product(batch)

    for first, end in ((0, 1), (79, 80), (3, 20), (0, 64)):
        assert torch.equal(product(batch[first:end]), together[first:end])


@needs_int8
def test_a_row_that_is_not_finite_stays_so_and_leaves_the_others_alone() -> None:
    product = Int8Product(drawn(8, 16), None)
    batch = drawn(3, 16, seed=9)
    expected = product(batch)
    batch[1, 4] = float("nan")
    batch[2, 5] = float("inf")

    found = product(batch)

    assert torch.equal(found[0], expected[0])
    assert not torch.isfinite(found[1:]).any()


@needs_int8
def test_rows_and_weights_of_zeros_give_zeros() -> None:
    weight = drawn(4, 16)
    weight[2] = 0
    layer_input = drawn(2, 16, seed=9)
    layer_input[1] = 0

    found = Int8Product(weight, None)(layer_input)

    assert found[0, [0, 1, 3]].abs().min() > 0
    assert (found[1] == 0).all()
    assert found[0, 2] == 0


@needs_int8
def test_no_rows_give_no_rows() -> None:
    """A step in which no sequence emits a token asks the head for nothing."""
    assert Int8Product(drawn(8, 16), drawn(8))(torch.empty(1, 0, 16)).shape == (1, 0, 8)


@needs_int8
def test_the_copy_takes_about_half_of_bfloat16() -> None:
    weight = drawn(256, 512, dtype=torch.bfloat16)

    assert weight.nbytes / 2 < Int8Product(weight, None).bytes < weight.nbytes * 0.52


@needs_int8
def test_training_through_a_quantized_layer_is_refused() -> None:
    with pytest.raises(RuntimeError, match="train in a twin"):
        Int8Product(drawn(8, 16), None)(drawn(2, 16).requires_grad_())


def test_a_processor_without_8_bit_products_is_a_fault(
    fresh_trial: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})

    assert int8_fault() == "this processor has no 8-bit products (VNNI or AMX)"
    assert "not quantized" in caplog.text


@needs_int8
def test_sums_that_saturate_are_a_fault(fresh_trial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As processors do that add two products in 16 bits."""
    multiply = int8._multiply
    monkeypatch.setattr(int8, "_multiply", lambda *operands: multiply(*operands).clamp_(max=32_767))

    assert int8_fault() == "8-bit sums overflow here: 1.03226e+06 came out as 32767"


@needs_int8
def test_a_missing_operation_is_a_fault(fresh_trial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise AttributeError("no attribute 'qlinear_prepack'")

    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", gone)

    fault = int8_fault()

    assert fault is not None
    assert "no attribute 'qlinear_prepack'" in fault
