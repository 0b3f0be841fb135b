"""The check before the engine takes a model over: what does not agree over slots falls back, and says why."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from transformers import (
    DiffLlamaConfig,
    DogeConfig,
    HrmTextConfig,
    JetMoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.unit.engine.families import HELD, build
from tests.unit.engine.tiny_models import SIZES, generate, random_prompts
from worker.engine.kv.attention import IMPLEMENTATION, slot_attention
from worker.engine.self_check import self_check
from worker.engine.support import unsupported_reason

DISAGREEING: dict[str, tuple[PreTrainedConfig, str]] = {
    "calls attention twice a layer": (DiffLlamaConfig(**SIZES), "computes other logits"),
    "makes a mask of its own": (DogeConfig(**SIZES), "a mask that the model makes"),
    "runs its layers more than once": (HrmTextConfig(**SIZES | {"num_key_value_heads": 4}), "computes other logits"),
    "repeats its keys and values": (JetMoeConfig(kv_channels=16, **SIZES), "the slots hold"),
}


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return build(HELD["llama"]())


@pytest.fixture
def faulty_attention() -> Iterator[None]:
    """Every layer sees 4 tokens only."""
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, partial(slot_attention, sliding_window=4))
    yield
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, slot_attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", HELD)
def test_the_golden_families_agree(family: str, dtype: torch.dtype) -> None:
    assert self_check(build(HELD[family]()).to(dtype)) is None


@pytest.mark.parametrize("name", DISAGREEING)
def test_a_model_that_no_config_gives_away_is_found_out(name: str) -> None:
    config, reason = DISAGREEING[name]
    model = build(config)

    assert unsupported_reason(model) is None
    assert reason in (self_check(model) or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("faulty_attention")
def test_an_attention_that_sees_too_little_is_found_out(dtype: torch.dtype) -> None:
    assert "computes other logits" in (self_check(build(HELD["llama"]()).to(dtype)) or "")


def test_weights_that_are_not_finite_are_found_out() -> None:
    model = build(HELD["llama"]())
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")

    assert "nan" in (self_check(model) or "")


def test_the_model_is_left_as_it_was(llama: PreTrainedModel) -> None:
    prompt = random_prompts((20,))[0]
    text, weights = generate(llama, prompt, 8), {name: each.clone() for name, each in llama.state_dict().items()}
    implementation, random_state = llama.config._attn_implementation, torch.get_rng_state()

    assert self_check(llama) is None

    assert generate(llama, prompt, 8) == text
    assert llama.config._attn_implementation == implementation
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(each, weights[name]) for name, each in llama.state_dict().items())


@pytest.mark.usefixtures("faulty_attention")
def test_a_model_found_out_is_left_as_it_was_too(llama: PreTrainedModel) -> None:
    """It is then served by `generate()`."""
    prompt = random_prompts((20,))[0]
    text = generate(llama, prompt, 8)

    assert self_check(llama) is not None

    assert generate(llama, prompt, 8) == text
