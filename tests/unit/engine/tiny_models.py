"""Tiny random models of each family, transformers' own generate() to compare with, and a crowd to run together."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tandem.specs import GenerationParameters
from worker.engine.engine import Engine
from worker.engine.sequence import Generated, Sequence

VOCABULARY = 400
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(head_dim=16, **SIZES),
    "gemma": lambda: GemmaConfig(head_dim=16, **SIZES),
    "phi3": lambda: Phi3Config(**SIZES),
}


def build_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """The same random weights for the same seed, with a spread that makes greedy choices clear-cut."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.05 if "embed" not in name else 0.5)
    return model


def generate(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """What transformers' own generate() makes of one prompt alone, greedily."""
    ids = torch.tensor([prompt])
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return output[0, len(prompt) :].tolist()


def random_prompts(lengths: tuple[int, ...], *, seed: int = 1) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (length,), generator=random).tolist() for length in lengths]


@dataclass
class Crowd:
    """An engine and what was submitted to it."""

    engine: Engine

    def submit(
        self, prompt: list[int], *, adapter=None, on_text=None, priority: int = 0, owner: str = "", **parameters
    ) -> Sequence:
        sequence = Sequence(
            prompt,
            GenerationParameters(**parameters),
            adapter=adapter,
            on_text=on_text,
            priority=priority,
            owner=owner,
        )
        self.engine.submit(sequence)
        return sequence

    def run(self, *, steps: int = 2000) -> None:
        """Step until nothing is left; a crowd that does not end within `steps` fails the test."""
        for _ in range(steps):
            if not self.engine.has_work():
                return
            self.engine.step()
        raise AssertionError(f"still working after {steps} steps: {self.engine.occupancy}")

    def generate(self, prompt: list[int], **parameters) -> Generated:
        """One sequence alone."""
        sequence = self.submit(prompt, **parameters)
        self.run()
        return sequence.future.result(timeout=0)
