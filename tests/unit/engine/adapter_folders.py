"""Adapters as PEFT writes them: random weights over a tiny model, saved to a folder."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def save_adapter(model: PreTrainedModel, folder: Path, *, seed: int, spread: float = 0.1, **config) -> PeftModel:
    """Inject a LoRA into `model`, give it weights large enough to change the text, and save it."""
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=random) * spread)
    adapted.save_pretrained(folder)
    return adapted
