"""A model whose linear layers were sped up still computes what it did, and still is the model that it was."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.unit.engine.adapter_folders import save_adapter
from tests.unit.engine.tiny_models import FAMILIES, build_model, generate, random_prompts
from worker.engine.adapters.linear import AdapterLinear
from worker.engine.adapters.weights import read_adapter
from worker.engine.linears import products
from worker.engine.linears.int8 import Int8Product, int8_fault
from worker.engine.linears.packed import PackedProduct
from worker.engine.linears.products import choose_product, speed_up
from worker.training.twin import build_twin

LENGTHS = (5, 17, 70, 9, 1)
COUNT = 12


def linears(model: nn.Module) -> dict[str, AdapterLinear]:
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, AdapterLinear)}


def texts(together, prompts: list[list[int]], adapters: tuple[object, ...] = ()) -> list[list[int]]:
    """What the prompts come to, all in one crowd, each with its adapter."""
    sequences = [
        together.submit(prompt, max_new_tokens=COUNT, adapter=adapters[index] if adapters else None)
        for index, prompt in enumerate(prompts)
    ]
    together.run()
    return [list(sequence.future.result(0).token_ids) for sequence in sequences]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_crowd_generates_what_each_sequence_generates_alone(family: str, crowd) -> None:
    prompts = random_prompts(LENGTHS)
    alone = build_model(FAMILIES[family]())
    expected = [generate(alone, prompt, COUNT) for prompt in prompts]
    model = build_model(FAMILIES[family]())
    together = crowd(model)

    assert speed_up(linears(model)) > 0
    assert all(layer.product is not None for layer in linears(model).values())
    assert texts(together, prompts) == expected


# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
# peft tells that it saves the head's base weight beside its adapter.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_packed_mixed_adapters_equal_peft_alone(tmp_path: Path, crowd) -> None:
    """Adapters of some of the layers that share a product, of others, and none, side by side."""
    targets = {"one": ["q_proj", "gate_proj"], "two": ["k_proj", "v_proj", "up_proj", "down_proj", "lm_head"]}
    prompts = random_prompts(LENGTHS)
    names = ("one", "two", None, "one", "two")
    alone = {None: build_model(FAMILIES["llama"]())} | {
        name: save_adapter(
            build_model(FAMILIES["llama"]()), tmp_path / name, seed=seed, r=4, lora_alpha=8, target_modules=modules
        )
        for seed, (name, modules) in enumerate(targets.items())
    }
    expected = [generate(alone[name], prompt, COUNT) for name, prompt in zip(names, prompts, strict=True)]
    model = build_model(FAMILIES["llama"]())
    together = crowd(model)
    speed_up(linears(model))
    adapters = {None: None} | {name: read_adapter(name, tmp_path / name, model) for name in targets}

    assert texts(together, prompts, tuple(adapters[name] for name in names)) == expected


def test_packing_changes_no_bit_in_bfloat16(crowd) -> None:
    model = build_model(FAMILIES["llama"]()).to(torch.bfloat16)
    together = crowd(model)
    prompts = random_prompts(LENGTHS)

    def logprobs() -> list[tuple[float, ...]]:
        sequences = [together.submit(prompt, max_new_tokens=COUNT) for prompt in prompts]
        together.run()
        return [sequence.future.result(0).token_logprobs for sequence in sequences]

    before = logprobs()
    speed_up(linears(model))

    assert logprobs() == before


def test_layers_with_one_input_share_a_product(crowd) -> None:
    model = build_model(FAMILIES["llama"]())
    crowd(model)
    speed_up(linears(model))
    layer = model.model.layers[0]

    assert layer.self_attn.q_proj.product.func.__self__ is layer.self_attn.v_proj.product.func.__self__
    assert layer.mlp.gate_proj.product.func.__self__ is layer.mlp.up_proj.product.func.__self__
    assert isinstance(layer.self_attn.o_proj.product, PackedProduct)


def test_the_models_own_weights_stay_where_they_were(crowd) -> None:
    """The twin is made of them."""
    model = build_model(FAMILIES["llama"]())
    crowd(model)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    speed_up(linears(model))

    twin = build_twin(model)

    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert twin.model.layers[0].mlp.up_proj.weight.data_ptr() == before["model.layers.0.mlp.up_proj.weight"]
    assert type(twin.model.layers[0].mlp.up_proj) is nn.Linear


def test_the_copies_are_counted(crowd) -> None:
    """All linear layers once more, in whole blocks of the packed order."""
    model = build_model(FAMILIES["llama"]())
    crowd(model)
    weights = sum(layer.weight.nbytes for layer in linears(model).values())

    assert weights <= speed_up(linears(model)) < weights * 1.1


def test_layers_that_cannot_be_joined_are_packed_alone(crowd) -> None:
    model = build_model(FAMILIES["qwen2"]())
    crowd(model)
    layer = model.model.layers[0].self_attn
    layer.k_proj.bias = None

    speed_up(linears(model))

    assert all(isinstance(each.product, PackedProduct) for each in (layer.q_proj, layer.k_proj, layer.v_proj))


def test_without_the_operations_the_layers_stay_as_they_are(crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "packing_fault", lambda _: "taken away by the test")
    prompts = random_prompts((5, 9))
    expected = [generate(build_model(FAMILIES["llama"]()), prompt, COUNT) for prompt in prompts]
    model = build_model(FAMILIES["llama"]())
    together = crowd(model)

    assert speed_up(linears(model)) == 0
    assert all(layer.product is None for layer in linears(model).values())
    assert texts(together, prompts) == expected


def test_weights_on_another_device_are_left_alone() -> None:
    assert choose_product(torch.empty(8, 8, device="meta"), None, quantize=False) is None


@pytest.mark.parametrize("fault", [None, "taken away by the test"], ids=["int8", "no-int8"])
def test_int8_is_used_when_asked_for_and_there(fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "int8_fault", lambda: fault)
    large = torch.randn(2048, 2048)

    assert isinstance(choose_product(large, None, quantize=True), PackedProduct if fault else Int8Product)
    assert isinstance(choose_product(large, None, quantize=False), PackedProduct)


def test_layers_too_small_to_gain_are_not_quantized() -> None:
    assert isinstance(choose_product(torch.randn(2048, 2047), None, quantize=True), PackedProduct)


@pytest.mark.skipif(int8_fault() is not None, reason=f"8-bit products: {int8_fault()}")
def test_a_quantized_model_answers_nearly_as_before(crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through layers that share their quantized input."""
    monkeypatch.setattr(products, "QUANTIZED_WEIGHTS", 1)
    model: PreTrainedModel = build_model(FAMILIES["llama"]())
    together = crowd(model)
    prompt = random_prompts((40,))[0]
    before = together.generate(prompt, max_new_tokens=1)
    exact = speed_up(linears(model))

    quantized = speed_up(linears(model), quantize=True)
    after = together.generate(prompt, max_new_tokens=1)

    assert quantized < exact / 3  # a byte for each float32, and the scales
    assert after.token_logprobs != before.token_logprobs
    assert after.token_logprobs[0] == pytest.approx(before.token_logprobs[0], abs=0.1)
