"""From a spec's method to PEFT's config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from pydantic import TypeAdapter
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

from tandem.errors import InvalidRequest
from tandem.specs import LoraMethod
from tandem.specs.methods import AnyMethod, Ia3Method, Method, PrefixTuningMethod, PromptTuningMethod
from tests.unit.training.tiny import chatml_tokenizer, run_training, tiny_gpt2, tiny_llama
from tests.unit.training.tiny_encoders import learn, tiny_body
from worker.training.adapter import attach_adapter
from worker.training.methods import peft_config
from worker.training.objectives.text_generation import TextGeneration
from worker.training.virtual_tokens import start_from_text

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


read_method: TypeAdapter[AnyMethod] = TypeAdapter(Method)


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


@pytest.mark.parametrize("option", ["use_rslora", "use_dora"])
def test_options_of_lora_reach_peft(option: str) -> None:
    assert getattr(peft_config(LoraMethod(), tiny_llama()), option) is False
    assert getattr(peft_config(LoraMethod(**{option: True}), tiny_llama()), option) is True


@pytest.mark.parametrize(
    ("model", "method", "targets", "feedforward"),
    [
        (tiny_llama(), Ia3Method(type="ia3"), {"k_proj", "v_proj", "down_proj"}, {"down_proj"}),
        (tiny_gpt2(), Ia3Method(type="ia3"), {"c_attn", "mlp.c_proj"}, {"mlp.c_proj"}),
        (
            tiny_llama(),
            Ia3Method(type="ia3", target_modules=("q_proj", "mlp.down_proj")),
            {"q_proj", "mlp.down_proj"},
            {"mlp.down_proj"},
        ),
        (
            tiny_llama(),
            Ia3Method(type="ia3", target_modules=("q_proj", "down_proj"), feedforward_modules=()),
            {"q_proj", "down_proj"},
            set(),
        ),
        (tiny_body("bert"), Ia3Method(type="ia3"), {"key", "value", "output.dense"}, {"output.dense"}),
    ],
    ids=["llama", "gpt2", "named", "named, no feed-forward", "bert"],
)
def test_ia3_scales_the_inputs_of_feed_forward_layers(
    model: PreTrainedModel, method: Ia3Method, targets: set[str], feedforward: set[str]
) -> None:
    """PEFT's choice for the model, also for which side is scaled of a layer that was named."""
    config = peft_config(method, model)
    assert (config.target_modules, config.feedforward_modules) == (targets, feedforward)


def test_ia3_on_an_unknown_model_asks_for_targets() -> None:
    """Which side of a layer to scale is no matter for a guess."""
    with pytest.raises(InvalidRequest, match="name some of its linear layers, which are down_proj") as raised:
        peft_config(Ia3Method(type="ia3"), unmapped_llama())
    assert raised.value.param == "method.target_modules"
    config = peft_config(Ia3Method(type="ia3", target_modules=("k_proj",)), unmapped_llama())
    assert config.feedforward_modules == set()


def test_ia3_targets_that_the_model_lacks_are_named() -> None:
    with pytest.raises(InvalidRequest, match="no linear layer called key; it has down_proj"):
        peft_config(Ia3Method(type="ia3", target_modules=("key",)), tiny_llama())


def attach(model: PreTrainedModel, method: AnyMethod) -> None:
    attach_adapter(model, method, "tiny", TextGeneration(chatml_tokenizer(), 64), total_steps=1)


def falcon_with_one_key_head() -> FalconForCausalLM:
    """PEFT's prefix has a key for each of the four heads that ask, and this model keeps one for all."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
    return FalconForCausalLM(FalconConfig(multi_query=True, new_decoder_architecture=False, **sizes)).eval()


def gpt2_without_cache() -> GPT2LMHeadModel:
    class Cacheless(GPT2LMHeadModel):
        def forward(self, input_ids: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None) -> Any:
            return super().forward(input_ids=input_ids, inputs_embeds=inputs_embeds, use_cache=False)

    return Cacheless(tiny_gpt2().config).eval()


def mamba() -> MambaForCausalLM:
    return MambaForCausalLM(MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (falcon_with_one_key_head, "does not keep the same keys and values in every layer"),
        (gpt2_without_cache, "has no cache of keys and values for a prefix"),
    ],
)
def test_a_prefix_that_the_model_cannot_read_is_refused(build: Callable[[], PreTrainedModel], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=f" {reason}: use lora or ia3") as raised:
        attach(build(), PrefixTuningMethod(type="prefix-tuning", num_virtual_tokens=3))
    assert raised.value.param == "method.type"
    attach(build(), PromptTuningMethod(type="prompt-tuning", num_virtual_tokens=3))


def test_a_model_without_attention_takes_no_virtual_tokens() -> None:
    with pytest.raises(InvalidRequest, match=r"before the text of MambaForCausalLM: .*attention") as raised:
        attach(mamba(), PromptTuningMethod(type="prompt-tuning"))
    assert raised.value.param == "method.type"


@pytest.mark.parametrize("kind", ["prefix-tuning", "prompt-tuning", "p-tuning"])
def test_virtual_tokens_must_leave_room_for_a_row(kind: str, tmp_path: Path) -> None:
    """The tiny GPT-2 reads 64 tokens, and a row has eight at least; what is left of a longer row is cut."""

    def virtual(tokens: int) -> AnyMethod:
        return read_method.validate_python({"type": kind, "num_virtual_tokens": tokens})

    outcome = run_training(tiny_gpt2(), tmp_path, method=virtual(50), max_steps=1)
    assert outcome.training_data.truncated_rows > 0
    with pytest.raises(InvalidRequest, match=r"reads 64 tokens, so 57 virtual ones .* 56 is the most") as raised:
        run_training(tiny_gpt2(), tmp_path, method=virtual(57))
    assert raised.value.param == "method.num_virtual_tokens"


def test_virtual_tokens_are_no_part_of_an_encoders_tasks(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="for text-classification use lora or ia3") as raised:
        learn(tiny_body(), tmp_path, method=PrefixTuningMethod(type="prefix-tuning"))
    assert raised.value.param == "method.type"


def test_a_text_without_a_token_is_no_beginning() -> None:
    """Such as a control character that the tokenizer strips."""
    model = get_peft_model(tiny_llama(), peft_config(PromptTuningMethod(type="prompt-tuning"), tiny_llama()))
    with pytest.raises(InvalidRequest, match="no token for this model") as raised:
        start_from_text(model, [])
    assert raised.value.param == "method.prompt_tuning_init_text"
