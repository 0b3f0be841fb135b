"""The twin: the resident's weights in a second module tree, neither of which disturbs the other."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, MistralConfig, MistralForCausalLM, PreTrainedModel

from tests.unit.training.tiny import tiny_gpt2, tiny_llama
from worker.training.twin import GiveWayAtEveryCall, build_twin, give_way_at_layers, layers

IDS = torch.arange(20).reshape(2, 10) + 5


class ServingLinear(nn.Module):
    """As a serving engine does it: another module over the same Parameter objects, with more state of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.register_buffer("bank", torch.zeros(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError(f"the twin ran one of the resident's modules on {x.shape}")


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).eval()


def mistral() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return MistralForCausalLM(MistralConfig(vocab_size=100, intermediate_size=64, sliding_window=4, **sizes)).eval()


RESIDENTS = {
    "tied": lambda: tiny_llama(tied=True),
    "untied": lambda: tiny_llama(tied=False),
    "bfloat16": lambda: tiny_llama(dtype=torch.bfloat16),
    "gpt2": tiny_gpt2,
    "bert": bert,
    "mistral": mistral,
}


@pytest.mark.parametrize("name", RESIDENTS)
def test_the_twin_computes_what_the_resident_computes(name: str) -> None:
    """Bit for bit the same logits, in the resident's dtype, from the same memory."""
    resident = RESIDENTS[name]()
    twin = build_twin(resident)
    with torch.no_grad():
        assert torch.equal(twin(input_ids=IDS).logits, resident(input_ids=IDS).logits)
    theirs = dict(resident.named_parameters(remove_duplicate=False))
    for parameter_name, parameter in twin.named_parameters(remove_duplicate=False):
        assert parameter.data_ptr() == theirs[parameter_name].data_ptr(), parameter_name
        assert parameter is not theirs[parameter_name], "requires_grad and grad would be shared"
    assert twin.dtype == resident.dtype
    assert not any(buffer.is_meta for buffer in twin.buffers())


def test_a_tied_head_is_tied_in_the_twin() -> None:
    twin = build_twin(tiny_llama(tied=True))
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight


def test_the_twin_is_built_from_the_class_not_from_serving_modules() -> None:
    """An engine's own linears, buffers and attention in the resident leave no trace in the twin."""
    resident, reference = tiny_llama(), tiny_llama()
    for layer in resident.model.layers:
        layer.self_attn.q_proj = ServingLinear(layer.self_attn.q_proj)
        layer.mlp.down_proj = ServingLinear(layer.mlp.down_proj)
    resident.config._attn_implementation_internal = "an-engines-own"
    twin = build_twin(resident)
    assert type(twin.model.layers[0].self_attn.q_proj) is nn.Linear
    assert twin.config._attn_implementation == "sdpa"
    assert resident.config._attn_implementation == "an-engines-own"
    with torch.no_grad():
        assert torch.equal(twin(input_ids=IDS).logits, reference(input_ids=IDS).logits)


def test_train_mode_and_gradients_stay_in_the_twin() -> None:
    """Training mode, frozen weights, gradients and config of the twin are the twin's."""
    resident = tiny_llama()
    twin = build_twin(resident)
    twin.train()
    twin.config.use_cache = False
    twin(input_ids=IDS, labels=IDS).loss.backward()
    assert twin.model.layers[0].self_attn.q_proj.weight.grad is not None
    twin.requires_grad_(False)
    assert not resident.training
    assert resident.config.use_cache
    assert all(parameter.requires_grad and parameter.grad is None for parameter in resident.parameters())


def test_buffers_are_copied() -> None:
    """A batch norm's running mean, say, is written in train mode: the resident's must not be."""
    resident = tiny_llama()
    twin = build_twin(resident)
    with torch.no_grad():
        for buffer in twin.buffers():
            buffer.zero_()
    assert all(bool(buffer.any()) for buffer in resident.buffers())


def test_a_resident_without_a_parameter_is_refused_by_name() -> None:
    resident = tiny_llama()
    resident.model.norm.weight = None
    with pytest.raises(ValueError, match=r"no parameter model\.norm\.weight"):
        build_twin(resident)


class Boundaries:
    """Counts how often the twin offers to give way."""

    def __init__(self) -> None:
        self.count = 0

    def give_way(self) -> None:
        self.count += 1


@pytest.mark.parametrize(
    ("name", "depth", "matrices"),
    [
        ("tied", 3, 7),  # four of the attention, three of the MLP
        ("gpt2", 2, 4),  # two of each
        ("bert", 2, 6),  # query, key, value, and three of which each has an output
    ],
)
def test_every_layer_and_matrix_gives_way_forward_and_backward(name: str, depth: int, matrices: int) -> None:
    twin, boundaries = build_twin(RESIDENTS[name]()), Boundaries()
    assert len(layers(twin)) == depth
    twin.requires_grad_(False)
    twin.get_input_embeddings().requires_grad_(True)  # so that gradients flow through frozen layers, as in training
    handles = give_way_at_layers(twin, boundaries)
    expected = depth * (1 + matrices)
    output = twin(input_ids=IDS).logits.sum()
    assert boundaries.count == expected
    output.backward()
    assert boundaries.count == 2 * expected
    with torch.no_grad():
        twin(input_ids=IDS)
    assert boundaries.count == 3 * expected
    for handle in handles:
        handle.remove()
    twin(input_ids=IDS).logits.sum().backward()
    assert boundaries.count == 3 * expected


def test_work_without_layers_gives_way_at_every_call() -> None:
    """An optimizer's step over many tensors has a boundary at each of its operations, and computes the same."""
    boundaries, steps = Boundaries(), []
    for watched in (False, True):
        weights = [nn.Parameter(torch.arange(4.0) + number) for number in range(10)]
        optimizer = torch.optim.AdamW(weights, lr=0.1)
        for weight in weights:
            weight.grad = weight.detach().clone()
        with GiveWayAtEveryCall(boundaries) if watched else nullcontext():
            optimizer.step()
        assert (boundaries.count > 10 * len(weights)) is watched
        steps.append(torch.stack([weight.detach() for weight in weights]))
    assert torch.equal(*steps)
    before = boundaries.count
    torch.zeros(3)
    assert boundaries.count == before, "outside of the block nothing gives way"


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no list of layers"):
        give_way_at_layers(nn.Linear(2, 2), Boundaries())
