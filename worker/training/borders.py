"""Whether a model keeps the texts of a packed row apart."""

import torch
from transformers import PreTrainedModel

TOLERANCE = 1e-3
"""Of the largest logit: what kernels for other shapes differ by at most in bfloat16 is below; a text that sees
another one differs by far more."""
FIRST, SECOND = (1, 3, 2, 0), (0, 2, 3, 1)
"""Tokens that every vocabulary has."""


def keeps_texts_apart(model: PreTrainedModel) -> bool:
    """Whether tokens see their own text alone where positions begin anew (transformers' packed sequences).

    Tried rather than looked up: it depends on the model's code and its attention. The model must be in eval mode,
    and training hold the device.
    """
    with torch.no_grad():
        device = model.device
        alone = model(input_ids=torch.tensor([SECOND], device=device)).logits[0].float()
        packed = model(
            input_ids=torch.tensor([(*FIRST, *SECOND)], device=device),
            position_ids=torch.tensor([(*range(len(FIRST)), *range(len(SECOND)))], device=device),
        ).logits[0, len(FIRST) :]
    difference = (packed.float() - alone).abs().max()
    limit = TOLERANCE if model.dtype == torch.float32 else 50 * TOLERANCE
    return bool(difference <= limit * alone.abs().max())
