"""Adapters as PEFT writes them, with random weights: they cost what trained ones cost."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model

from bench.decoder import load_plain

RANK = 8
TARGETS = ["q_proj", "v_proj"]
VIRTUAL_TOKENS = 16
SPREAD = 0.02
"""Standard deviation of the weights drawn: no row overflows, and no adapter is the identity."""
CONFIGS: dict[str, Callable[[], PeftConfig]] = {
    "LoRA": lambda: LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules=TARGETS),
    "DoRA": lambda: LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules=TARGETS, use_dora=True),
    "IA³": lambda: IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "prefix tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL_TOKENS),
}
"""By the method's name."""


def save_adapters(method: str, folder: Path, count: int) -> list[Path]:
    """So many different adapters of one method, each in a folder of its own inside `folder`."""
    model, _ = load_plain()
    adapted = get_peft_model(model, CONFIGS[method]())
    random = torch.Generator().manual_seed(1)
    folders = []
    for number in range(count):
        with torch.no_grad():
            for weight in (weight for weight in adapted.parameters() if weight.requires_grad):
                drawn = torch.randn(weight.shape, generator=random) * SPREAD
                # Trained scales stay near what they begin with.
                weight.copy_(weight * (1 + drawn) if weight.ndim == 1 or method == "IA³" else drawn)
        folders.append(folder / f"{number}")
        adapted.save_pretrained(str(folders[-1]))
    return folders
