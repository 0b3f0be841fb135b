"""Layers that read the same input are computed once, and always from the input that they were called with."""

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F

from worker.engine.linears.fused import FusedProduct, same_input_groups

OUTPUTS = (6, 2, 4)
INPUTS = 10


class Counted:
    """The joined layer, and how often it was computed."""

    def __init__(self) -> None:
        self.weight = torch.randn(sum(OUTPUTS), INPUTS, generator=torch.Generator().manual_seed(1))
        self.calls = 0

    def __call__(self, layer_input: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return F.linear(layer_input, self.weight)

    def expected(self, index: int, layer_input: torch.Tensor) -> torch.Tensor:
        return F.linear(layer_input, self.weight).split(OUTPUTS, dim=-1)[index]


def drawn(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, INPUTS, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def joined() -> Counted:
    return Counted()


def test_the_first_layer_computes_all_and_the_others_take_their_part(joined: Counted) -> None:
    parts = FusedProduct(joined, OUTPUTS).parts()
    layer_input = drawn(2)

    found = [part(layer_input) for part in parts]

    assert joined.calls == 1
    assert all(torch.equal(part, joined.expected(index, layer_input)) for index, part in enumerate(found))


def test_layers_may_be_called_in_any_order(joined: Counted) -> None:
    parts = FusedProduct(joined, OUTPUTS).parts()
    layer_input = drawn(2)

    for index in (2, 0, 1):
        assert torch.equal(parts[index](layer_input), joined.expected(index, layer_input))
    assert joined.calls == 1


def test_a_layer_that_gets_another_input_is_computed_from_that(joined: Counted) -> None:
    """Equal shapes are no reason: IA3 scales one layer's input and not its neighbours'."""
    parts = FusedProduct(joined, OUTPUTS).parts()
    inputs = (drawn(2), drawn(3), drawn(2))

    for index, layer_input in enumerate(inputs):
        assert torch.equal(parts[index](layer_input), joined.expected(index, layer_input))
    assert joined.calls == 3


def test_a_layer_called_twice_with_one_input_does_not_see_what_its_taker_wrote(joined: Counted) -> None:
    """Adapters add to a layer's output in place."""
    parts = FusedProduct(joined, OUTPUTS).parts()
    layer_input = drawn(2)
    parts[1](layer_input).add_(1)

    assert torch.equal(parts[1](layer_input), joined.expected(1, layer_input))


def test_writing_into_one_part_leaves_the_others_alone(joined: Counted) -> None:
    parts = FusedProduct(joined, OUTPUTS).parts()
    layer_input = drawn(2)
    parts[0](layer_input).fill_(7)

    assert torch.equal(parts[1](layer_input), joined.expected(1, layer_input))
    assert joined.calls == 1


def test_nothing_is_held_once_all_parts_are_taken(joined: Counted) -> None:
    parts = FusedProduct(joined, OUTPUTS).parts()
    layer_input = drawn(2)
    held = weakref.ref(layer_input)
    for part in parts:
        part(layer_input)

    del layer_input
    gc.collect()

    assert held() is None


def test_threads_get_the_products_of_their_own_inputs(joined: Counted) -> None:
    parts = FusedProduct(joined, OUTPUTS).parts()
    wrong: list[int] = []
    both_run = threading.Barrier(2)

    def serve(seed: int) -> None:
        both_run.wait()
        for number in range(300):
            layer_input = drawn(seed * 1000 + number)
            found = [part(layer_input) for part in parts]
            if any(not torch.equal(part, joined.expected(index, layer_input)) for index, part in enumerate(found)):
                wrong.append(number)

    threads = [threading.Thread(target=serve, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_siblings_are_grouped_by_their_names() -> None:
    paths = [
        "layers.0.attn.q_proj",
        "layers.0.attn.k_proj",
        "layers.0.attn.v_proj",
        "layers.0.attn.o_proj",
        "layers.0.mlp.up_proj",
        "layers.0.mlp.gate_proj",
        "layers.1.attn.k_proj",
        "lm_head",
    ]

    assert same_input_groups(paths) == [
        ("layers.0.attn.q_proj", "layers.0.attn.k_proj", "layers.0.attn.v_proj"),
        ("layers.0.attn.o_proj",),
        ("layers.0.mlp.gate_proj", "layers.0.mlp.up_proj"),
        ("layers.1.attn.k_proj",),
        ("lm_head",),
    ]
