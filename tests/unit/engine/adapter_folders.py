"""Adapters as PEFT writes them: random weights over a tiny model, saved to a folder."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def save_adapter(
    model: PreTrainedModel,
    folder: Path,
    *,
    seed: int,
    spread: float = 0.1,
    method: type[PeftConfig] = LoraConfig,
    task_type: str = "CAUSAL_LM",
    **config,
) -> PeftModel:
    """Inject an adapter of PEFT's `method`, give it weights large enough to change the text, and save it."""
    adapted = get_peft_model(model, method(task_type=task_type, **config)).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            drawn = torch.randn(weight.shape, generator=random) * spread
            if "lora_magnitude_vector" in name or "ia3_l" in name:
                weight.mul_(1 + drawn.to(weight))  # trained scales stay near what they begin with
            elif any(word in name for word in ("lora_", "hada_", "lokr_", "vera_lambda_", "oft_R", "prompt_encoder")):
                weight.copy_(drawn)
    adapted.save_pretrained(folder)
    return adapted
