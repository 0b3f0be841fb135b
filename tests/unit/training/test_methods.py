"""From a spec's method to PEFT's config."""

import pytest
from transformers import LlamaForCausalLM, PhiConfig, PhiForCausalLM

from tandem.errors import InvalidRequest
from tandem.specs import LoraMethod
from tests.unit.training.tiny import tiny_gpt2, tiny_llama
from worker.training.methods import peft_config


def unmapped_llama() -> LlamaForCausalLM:
    model = tiny_llama()
    model.config.model_type = "a-type-that-peft-does-not-know"
    return model


def test_settings_reach_peft() -> None:
    config = peft_config(LoraMethod(r=4, alpha=12.0, dropout=0.25), tiny_llama(), base_name="tiny-llama")
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 12.0, 0.25)
    assert (config.base_model_name_or_path, config.task_type) == ("tiny-llama", "CAUSAL_LM")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (tiny_llama(), {"q_proj", "v_proj"}),
        (tiny_gpt2(), {"c_attn"}),
        (unmapped_llama(), {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_without_targets_peft_chooses_or_else_attention_is_adapted(
    model: LlamaForCausalLM, expected: set[str]
) -> None:
    assert peft_config(LoraMethod(), model).target_modules == expected


@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), ("self_attn.o_proj",), ("model.layers.1.mlp.up_proj",)])
def test_targets_are_names_or_the_ends_of_paths(targets: tuple[str, ...]) -> None:
    assert peft_config(LoraMethod(target_modules=targets), tiny_llama()).target_modules == set(targets)


@pytest.mark.parametrize("target", ["q_porj", "proj", "lm_head", "embed_tokens", "self_attn"])
def test_a_target_that_the_model_lacks_is_refused_with_what_it_has(target: str) -> None:
    """Neither part of a name nor another kind of module is a linear layer that can be adapted."""
    with pytest.raises(InvalidRequest) as raised:
        peft_config(LoraMethod(target_modules=("v_proj", target)), tiny_llama())
    assert raised.value.param == "method.target_modules"
    assert raised.value.message == (
        f"the model has no linear layer called {target}; it has down_proj, gate_proj, k_proj, o_proj, q_proj, "
        "up_proj, v_proj"
    )


def test_a_model_without_known_attention_asks_for_targets() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = PhiForCausalLM(PhiConfig(vocab_size=50, **sizes))
    model.config.model_type = "a-type-that-peft-does-not-know"
    for layer in model.model.layers:
        del layer.self_attn
    with pytest.raises(InvalidRequest, match="name some of its linear layers, which are fc1, fc2") as raised:
        peft_config(LoraMethod(), model)
    assert raised.value.param == "method.target_modules"
