"""Packed products compute what `F.linear` does, and where they cannot, that is found out before they are used."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from worker.engine.linears import packed
from worker.engine.linears.packed import PackedProduct, packing_fault

SHAPES = ((1, 0, 40), (1, 1, 40), (1, 7, 40), (3, 100, 40), (40,), (2, 2, 3, 40))


def random_layer(dtype: torch.dtype, *, outputs: int = 24, inputs: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(outputs, inputs, generator=random).to(dtype)
    return weight, torch.randn(outputs, generator=random).to(dtype)


def random_input(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)


@pytest.fixture
def fresh_trial() -> Iterator[None]:
    """The trial's answer is kept for the process; a test that changes it must not leave its own behind."""
    packing_fault.cache_clear()
    yield
    packing_fault.cache_clear()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_bfloat16_products_are_those_of_f_linear_bit_for_bit(shape: tuple[int, ...], has_bias: bool) -> None:
    weight, bias = random_layer(torch.bfloat16)
    layer_input = random_input(shape, torch.bfloat16)
    expected = F.linear(layer_input, weight, bias if has_bias else None)

    found = PackedProduct(weight, bias if has_bias else None)(layer_input)

    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_products_differ_from_f_linear_in_the_last_bits_only(shape: tuple[int, ...]) -> None:
    """oneDNN sums in another order than MKL, which `F.linear` uses."""
    weight, bias = random_layer(torch.float32)
    layer_input = random_input(shape, torch.float32)

    torch.testing.assert_close(
        PackedProduct(weight, bias)(layer_input), F.linear(layer_input, weight, bias), atol=1e-5, rtol=1e-5
    )


def test_an_input_may_be_a_view_of_other_columns() -> None:
    weight, _ = random_layer(torch.bfloat16)
    wide = random_input((1, 9, 100), torch.bfloat16)

    assert torch.equal(PackedProduct(weight, None)(wide[..., 10:50]), F.linear(wide[..., 10:50], weight))


def test_the_copy_is_as_large_as_the_weight() -> None:
    weight, bias = random_layer(torch.bfloat16, outputs=128, inputs=64)

    assert PackedProduct(weight, bias).bytes == weight.nbytes


def test_training_through_a_packed_layer_is_refused() -> None:
    """torch has no gradient for it, and would go on without one."""
    weight, bias = random_layer(torch.float32)

    with pytest.raises(RuntimeError, match="train in a twin"):
        PackedProduct(weight, bias)(random_input((2, 40), torch.float32).requires_grad_())


def test_a_parameter_as_input_is_no_training() -> None:
    """DeBERTa projects its table of relative positions."""
    weight, bias = random_layer(torch.float32)
    table = torch.nn.Parameter(random_input((2, 40), torch.float32))

    with torch.inference_mode():
        torch.testing.assert_close(PackedProduct(weight, bias)(table), F.linear(table, weight, bias))


def test_this_torch_packs_the_dtypes_that_cpus_serve_in() -> None:
    """An upgrade of torch that takes the private operations away must not pass unseen."""
    assert packing_fault(torch.float32) is None
    assert (packing_fault(torch.bfloat16) is None) == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_other_dtypes_are_not_packed(fresh_trial: None, caplog: pytest.LogCaptureFixture) -> None:
    assert packing_fault(torch.float64) == "weights in torch.float64 are not packed"
    assert "run unpacked" in caplog.text


def test_a_missing_operation_is_a_fault(fresh_trial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", gone)

    fault = packing_fault(torch.bfloat16)

    assert fault is not None
    assert "has no attribute '_reorder_linear_weight'" in fault


def test_a_wrong_result_is_a_fault(fresh_trial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(PackedProduct):
        def __call__(self, layer_input: torch.Tensor) -> torch.Tensor:
            return super().__call__(layer_input) + 1

    monkeypatch.setattr(packed, "PackedProduct", Wrong)

    assert packing_fault(torch.float32) == "the packed product differs from F.linear by 1"


def test_a_result_that_is_not_finite_is_a_fault(fresh_trial: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(PackedProduct):
        def __call__(self, layer_input: torch.Tensor) -> torch.Tensor:
            return super().__call__(layer_input) * float("nan")

    monkeypatch.setattr(packed, "PackedProduct", Broken)

    assert packing_fault(torch.float32) == "the packed product differs from F.linear by nan"
