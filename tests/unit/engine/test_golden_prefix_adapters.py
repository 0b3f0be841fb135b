"""The golden rule for virtual tokens: mixed in one batch equals each alone in PEFT, token for token."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from transformers import GPT2Config, PreTrainedConfig, PreTrainedModel

from tandem.errors import PromptTooLong
from tests.unit.engine.adapter_folders import save_adapter
from tests.unit.engine.tiny_models import FAMILIES, VOCABULARY, Crowd, build_model, generate, random_prompts
from worker.engine.adapters.weights import AdapterWeights, read_adapter
from worker.engine.sequence import Generated

pytestmark = [
    # peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # peft tells that it turns Conv1D's weight itself.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`:UserWarning"),
    # transformers' generate() hands positions on, which peft leaves to the model as it should, and says so.
    pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning"),
]

VIRTUAL: dict[str, dict[str, Any]] = {
    "prefix": {"method": PrefixTuningConfig, "num_virtual_tokens": 7, "spread": 1.0},
    "long-prefix": {
        "method": PrefixTuningConfig,
        "num_virtual_tokens": 40,
        "prefix_projection": True,
        "encoder_hidden_size": 16,
        "spread": 1.0,
    },
    "prompt": {"method": PromptTuningConfig, "num_virtual_tokens": 5, "spread": 1.0},
    "long-prompt": {"method": PromptTuningConfig, "num_virtual_tokens": 45, "spread": 1.0},
    "p-tuning": {
        "method": PromptEncoderConfig,
        "num_virtual_tokens": 9,
        "encoder_hidden_size": 32,
        "spread": 0.5,
    },
}
"""More virtual tokens than the crowd's step has rows, too."""


def methods(family: str) -> dict[str, dict[str, Any]]:
    """The settings of each adapter."""
    attention, feed_forward = ("c_attn", "mlp.c_proj") if family == "gpt2" else ("v_proj", "down_proj")
    both = [attention, feed_forward]
    return VIRTUAL | {
        "lora": {"r": 4, "lora_alpha": 16, "target_modules": [attention]},
        "dora": {"r": 4, "lora_alpha": 16, "use_dora": True, "target_modules": both},
        "ia3": {"method": IA3Config, "spread": 0.5, "target_modules": both, "feedforward_modules": [feed_forward]},
    }


ADAPTER_OF = (*VIRTUAL, None, "lora", "dora", "ia3", "prefix", "prompt")
LENGTHS = (5, 17, 33, 9, 23, 31, 12, 44, 1, 28, 2)
COUNT = 12
CLOSE = 1e-4
"""Largest difference of a natural log-probability in float32."""


def gpt2() -> PreTrainedConfig:
    sizes = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    return GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)


def tiny(family: str) -> PreTrainedModel:
    model = build_model((FAMILIES | {"gpt2": gpt2})[family]())
    if family == "gemma":
        # It multiplies them by the root of the hidden size, and they are its head: at full size a token predicts
        # itself, whatever comes before it.
        with torch.no_grad():
            model.get_input_embeddings().weight.div_(16)
    return model


@dataclass
class Case:
    """One family with its adapters, and what PEFT alone generates for each prompt."""

    family: str
    folders: dict[str, Path]
    prompts: list[list[int]]
    expected: list[tuple[list[int], torch.Tensor]]
    """Tokens, and the natural log-probability of each."""

    def serve(self, crowd: Callable[..., Crowd], **sizes: int) -> "Served":
        """The family's model in an engine, with all adapters read for it."""
        model = tiny(self.family)
        adapters = {name: read_adapter(name, folder, model) for name, folder in self.folders.items()}
        return Served(crowd(model, **sizes), {None: None} | adapters)


@dataclass
class Served:
    """An engine and the adapters that its sequences may bring."""

    crowd: Crowd
    adapters: dict[str | None, AdapterWeights | None]

    def together(self, prompts: list[list[int]]) -> list[Generated]:
        """What comes of all prompts, submitted at once."""
        sequences = [
            self.crowd.submit(prompt, adapter=self.adapters[name], max_new_tokens=COUNT)
            for prompt, name in zip(prompts, ADAPTER_OF, strict=True)
        ]
        self.crowd.run()
        return [sequence.future.result(0) for sequence in sequences]


def logprobs(model: torch.nn.Module, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """[len(tokens)]: of each token after the prompt and those before it; virtual tokens have logits of their own."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, -len(tokens) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def assert_same(found: list[Generated], expected: list[tuple[list[int], torch.Tensor]]) -> None:
    assert [list(result.token_ids) for result in found] == [tokens for tokens, _ in expected]
    for result, (_, of_peft) in zip(found, expected, strict=True):
        assert torch.allclose(torch.tensor(result.token_logprobs), of_peft, atol=CLOSE, rtol=0)


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma", "gpt2"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Rotary keys, normalized keys (Qwen3), scaled embeddings (Gemma), learned positions and Conv1D (GPT-2)."""
    family: str = request.param
    folders = {name: tmp_path_factory.mktemp(name) for name in methods(family)}
    alone = {None: tiny(family)} | {
        name: save_adapter(tiny(family), folders[name], seed=seed, **config)
        for seed, (name, config) in enumerate(methods(family).items())
    }
    prompts = random_prompts(LENGTHS)
    expected = []
    for prompt, name in zip(prompts, ADAPTER_OF, strict=True):
        tokens = generate(alone[name], prompt, COUNT)
        expected.append((tokens, logprobs(alone[name], prompt, tokens)))
    return Case(family, folders, prompts, expected)


@pytest.mark.parametrize("adapter_slots", [8, 1], ids=lambda slots: f"{slots}-adapter-slots")
def test_mixed_adapters_equal_peft_alone(adapter_slots: int, case: Case, crowd: Callable[..., Crowd]) -> None:
    """Trained prefixes, virtual tokens, LoRA, DoRA, IA3 and the base in one batch."""
    served = case.serve(crowd, adapter_slots=adapter_slots)

    assert_same(served.together(case.prompts), case.expected)


def test_alone_equals_mixed_and_again(case: Case, crowd: Callable[..., Crowd]) -> None:
    """One sequence at a time, then all at once, in slots that others have used: whatever is reused is right."""
    served = case.serve(crowd)
    alone = [
        served.crowd.generate(prompt, adapter=served.adapters[name], max_new_tokens=COUNT)
        for prompt, name in zip(case.prompts, ADAPTER_OF, strict=True)
    ]

    assert_same(alone, case.expected)
    assert_same(served.together(case.prompts), case.expected)


def test_the_adapters_change_the_probabilities(case: Case) -> None:
    """Otherwise the comparisons above would prove nothing."""
    base = tiny(case.family)
    for prompt, name, (tokens, of_peft) in zip(case.prompts, ADAPTER_OF, case.expected, strict=True):
        difference = (logprobs(base, prompt, tokens) - of_peft).abs().max()
        assert difference == 0 if name is None else difference > 20 * CLOSE


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_virtual_tokens_take_their_part_of_the_context(name: str, case: Case, crowd: Callable[..., Crowd]) -> None:
    """A slot has room for the virtual tokens, the prompt and the answer together."""
    served = case.serve(crowd, slot_tokens=64)
    adapter = served.adapters[name]
    assert adapter is not None
    assert adapter.prefix is not None
    room = 64 - adapter.prefix.length
    fits, too_long = random_prompts((room - 3, room))

    assert served.crowd.generate(fits, adapter=adapter, max_new_tokens=COUNT).completion_tokens == 3
    with pytest.raises(PromptTooLong, match=f"{adapter.prefix.length} of its adapter"):
        served.crowd.submit(too_long, adapter=adapter, max_new_tokens=COUNT)
