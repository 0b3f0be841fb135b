"""Which parts of a model run in kernels, and that its texts stay the same with them and without."""

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.gemma.modeling_gemma import GemmaAttention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from tests.unit.engine.families import HELD, build
from tests.unit.engine.tiny_models import FAMILIES, VOCABULARY, build_model, generate, random_prompts
from worker.engine.kernels import choice, replacement
from worker.engine.kernels.choice import kernels_for
from worker.engine.kernels.replacement import Replaced, same_code
from worker.engine.kernels.use import take_kernels
from worker.engine.kv.attention import IMPLEMENTATION
from worker.engine.kv.choice import row_attention_for, slots_for, stored_dtype

LENGTHS = (5, 40, 9, 70)


def replaced_kinds(model: PreTrainedModel) -> dict[str, int]:
    """How many modules of each kind run in kernels."""
    kernels = kernels_for(model)
    assert kernels is not None
    kinds: dict[str, int] = {}
    for module in Replaced(model, kernels).modules:
        kind = type(module).__name__
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma"])
def test_families_of_llamas_code_run_in_kernels(family: str) -> None:
    model = build(HELD[family]())
    layers = model.config.num_hidden_layers

    found = replaced_kinds(model)

    assert sum(count for kind, count in found.items() if kind.endswith("Attention")) == layers
    assert sum(count for kind, count in found.items() if kind.endswith("RMSNorm")) >= 2 * layers + 1
    # Gemma's gate is a GELU.
    assert sum(count for kind, count in found.items() if kind.endswith("MLP")) == (0 if family == "gemma" else layers)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_families_of_other_code_stay_as_they_are(family: str) -> None:
    assert replaced_kinds(build(HELD[family]())) == {}


def test_code_counts_and_not_names() -> None:
    class Other(LlamaAttention):
        def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **more):
            return super().forward(2 * hidden_states, position_embeddings, attention_mask, past_key_values, **more)

    assert same_code(LlamaAttention.forward, LlamaAttention.forward)
    assert not same_code(Other.forward, LlamaAttention.forward)
    assert not same_code(Qwen2Attention.forward, LlamaAttention.forward)
    assert not same_code(LlamaMLP.forward, LlamaRMSNorm.forward)


def test_another_rotation_is_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention's own lines may be the same while the function that it calls by name is not."""
    assert same_code(GemmaAttention.forward, LlamaAttention.forward)

    monkeypatch.setitem(GemmaAttention.forward.__globals__, replacement.ROTATION, lambda *states: states[:2])

    assert not same_code(GemmaAttention.forward, LlamaAttention.forward)


def test_what_changes_the_logits_is_taken_back(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    model = build_model(FAMILIES["llama"]())
    model.set_attn_implementation(IMPLEMENTATION)
    kernels = kernels_for(model)
    assert kernels is not None
    wrong = choice.Kernels(**vars(kernels) | {"silu_times": lambda gate, up: gate * up})

    assert take_kernels(model, wrong) is None

    assert not any("forward" in vars(module) for module in model.modules())
    assert "runs without kernels: other logits" in caplog.text
    assert take_kernels(model, kernels) is kernels


def test_what_fails_is_taken_back(caplog) -> None:
    def fails(*_: object) -> torch.Tensor:
        raise ValueError("a kernel fails")

    model = build_model(FAMILIES["llama"]())
    model.set_attn_implementation(IMPLEMENTATION)
    kernels = kernels_for(model)
    assert kernels is not None

    assert take_kernels(model, choice.Kernels(**vars(kernels) | {"rotate": fails})) is None

    assert not any("forward" in vars(module) for module in model.modules())
    assert "it fails: a kernel fails" in caplog.text


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma", "gpt2"])
def test_without_kernels_a_crowd_generates_what_each_generates_alone(family: str, crowd) -> None:
    """What runs where numba is missing. With kernels, test_golden_architectures tells the same of every family."""
    prompts = random_prompts(LENGTHS)
    alone = build(HELD[family]())
    expected = [generate(alone, prompt, 12) for prompt in prompts]
    together = crowd(build(HELD[family]()), cpu_kernels=False)

    sequences = [together.submit(prompt, max_new_tokens=12) for prompt in prompts]
    together.run()

    assert [list(each.future.result(0).token_ids) for each in sequences] == expected
    assert together.engine._kv.row_attention is None


def test_heads_that_fit_registers_generate_what_each_generates_alone(crowd) -> None:
    """The families' own heads are smaller than 32 values, which kernels compute in plain loops."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=130,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    prompts = random_prompts(LENGTHS)
    alone = build(config)
    expected = [generate(alone, prompt, 20) for prompt in prompts]
    together = crowd(build(config))

    sequences = [together.submit(prompt, max_new_tokens=20) for prompt in prompts]
    together.run()

    assert [list(each.future.result(0).token_ids) for each in sequences] == expected


def test_slots_of_a_bfloat16_model_hold_bfloat16_where_a_kernel_reads_them() -> None:
    """What was computed in bfloat16 loses nothing there, and is half the bytes."""
    model = build_model(FAMILIES["llama"]()).bfloat16()
    sizes = {"slots": 2, "slot_tokens": 32, "gpu_kernels": False}

    with_kernels, plain = slots_for(model, **sizes, kernels=kernels_for(model)), slots_for(model, **sizes)

    assert (with_kernels.dtype, plain.dtype) == (torch.bfloat16, torch.float32)
    assert with_kernels.bytes * 2 == plain.bytes
    assert stored_dtype(model, cpu_kernels=True) == torch.bfloat16
    assert stored_dtype(model, cpu_kernels=False) == torch.float32


@pytest.mark.parametrize("family", ["gemma2", "gpt-oss"])
def test_scores_that_are_capped_or_sink_keep_torchs_products(family: str) -> None:
    model = build(HELD[family]())

    assert row_attention_for(model, kernels_for(model)) is None


def test_a_model_on_another_device_has_no_kernels() -> None:
    assert kernels_for(build_model(FAMILIES["llama"]()).to("meta")) is None
