"""The golden rule for adapters: mixed in one batch equals each alone in PEFT, token for token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config

from tests.unit.engine.adapter_folders import save_adapter
from tests.unit.engine.tiny_models import FAMILIES, build_model, generate, random_prompts
from worker.engine.adapters.weights import AdapterWeights, read_adapter

pytestmark = [
    # peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # peft tells that it saves the head's base weight beside its adapter, which is what the test is about.
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]

ADAPTERS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "feed-forward": {"r": 2, "lora_alpha": 16, "target_modules": ["gate_proj", "down_proj"]},
    "rank-stabilized": {
        "r": 8,
        "lora_alpha": 5,
        "use_rslora": True,
        "target_modules": ["q_proj", "k_proj", "up_proj"],
    },
    "patterns": {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["o_proj", "q_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 7},
        "alpha_pattern": {"o_proj": 12},
    },
    "head": {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "v_proj"]},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj", "o_proj", "down_proj"]},
    "adalora": {
        "method": AdaLoraConfig,
        "spread": 0.3,
        "init_r": 6,
        "target_r": 3,
        "total_step": 10,
        "lora_alpha": 32,
        "target_modules": ["v_proj", "up_proj"],
    },
    "ia3": {
        "method": IA3Config,
        "spread": 0.5,
        "target_modules": ["k_proj", "v_proj", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
}
LENGTHS = (5, 17, 70, 9, 23, 31, 44, 19, 27, 12, 48, 3)
ADAPTER_OF = (None, *ADAPTERS, "attention", None, "head")
COUNT = 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each adapter; nothing is in it before `expected` has run."""
    return {name: tmp_path_factory.mktemp(name) for name in ADAPTERS}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> list[tuple[list[int], torch.Tensor]]:
    """For each prompt, what PEFT alone generates and the log-probabilities of those tokens."""
    alone = {None: build_model(FAMILIES["llama"]())} | {
        name: save_adapter(build_model(FAMILIES["llama"]()), folders[name], seed=seed, **config)
        for seed, (name, config) in enumerate(ADAPTERS.items())
    }
    results = []
    for prompt, name in zip(random_prompts(LENGTHS), ADAPTER_OF, strict=True):
        tokens = generate(alone[name], prompt, COUNT)
        with torch.no_grad():
            logprobs = alone[name](torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        results.append((tokens, logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0]))
    return results


def read_all(folders: dict[str, Path], model: torch.nn.Module) -> dict[str | None, AdapterWeights | None]:
    return {None: None} | {name: read_adapter(name, folder, model) for name, folder in folders.items()}


@pytest.mark.parametrize("adapter_slots", [8, 2, 1], ids=lambda slots: f"{slots}-adapter-slots")
def test_mixed_adapters_equal_peft_alone(adapter_slots: int, expected, folders, crowd) -> None:
    """Different methods, ranks and targets beside the base; with few adapter slots they take turns in them."""
    model = build_model(FAMILIES["llama"]())
    together = crowd(model, adapter_slots=adapter_slots)
    adapters = read_all(folders, model)

    sequences = [
        together.submit(prompt, adapter=adapters[name], max_new_tokens=COUNT)
        for prompt, name in zip(random_prompts(LENGTHS), ADAPTER_OF, strict=True)
    ]
    together.run()

    results = [sequence.future.result(0) for sequence in sequences]
    assert [list(result.token_ids) for result in results] == [tokens for tokens, _ in expected]
    for result, (_, logprobs) in zip(results, expected, strict=True):
        assert torch.allclose(torch.tensor(result.token_logprobs), logprobs, atol=1e-4, rtol=0)


def test_the_adapters_change_the_text(expected, crowd) -> None:
    """Otherwise the comparison above would prove nothing."""
    base = build_model(FAMILIES["llama"]())
    for prompt, name, (tokens, _) in zip(random_prompts(LENGTHS), ADAPTER_OF, expected, strict=True):
        assert (generate(base, prompt, COUNT) == tokens) == (name is None)


def test_an_evicted_adapter_comes_back_the_same(expected, folders, crowd) -> None:
    """One slot, used by each adapter in turn and then again: nothing of the former adapter is left in it."""
    model = build_model(FAMILIES["llama"]())
    alone = crowd(model, adapter_slots=1)
    adapters = read_all(folders, model)
    prompts = random_prompts(LENGTHS)

    for _ in range(2):
        for index, name in enumerate(ADAPTER_OF):
            result = alone.generate(prompts[index], adapter=adapters[name], max_new_tokens=COUNT)
            assert list(result.token_ids) == expected[index][0]


def test_packed_projections_are_adapted_too(tmp_path: Path, crowd) -> None:
    """Phi-3 has q, k and v in one linear layer."""
    prompts = random_prompts((8, 21))
    alone = save_adapter(
        build_model(FAMILIES["phi3"]()),
        tmp_path,
        seed=9,
        r=4,
        lora_alpha=8,
        target_modules=["qkv_proj", "gate_up_proj"],
    )
    expected = [generate(alone, prompts[0], COUNT), generate(build_model(FAMILIES["phi3"]()), prompts[1], COUNT)]
    model = build_model(FAMILIES["phi3"]())
    together = crowd(model)

    adapter = read_adapter("packed", tmp_path, model)
    sequences = [
        together.submit(prompts[0], adapter=adapter, max_new_tokens=COUNT),
        together.submit(prompts[1], max_new_tokens=COUNT),
    ]
    together.run()

    assert [list(sequence.future.result(0).token_ids) for sequence in sequences] == expected
