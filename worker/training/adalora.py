"""What AdaLoRA does beside training its weights: it takes ranks away, and keeps its singular vectors orthogonal.

PEFT's AdaLoraModel has both, for a training loop that runs its forward. Ours runs the backbone under it, so the cost
of vectors that are not orthogonal is added here; and what PEFT's rank allocator remembers goes into checkpoints.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from peft import AdaLoraModel, PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from worker.training.objectives.objective import Batch, BatchLoss, Loss

ALLOCATION = "allocation/"
"""Before the names of the allocator's tensors in a checkpoint."""
_MEANS = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""PEFT's names for what the allocator keeps of each weight: its sensitivity at the last step, the running mean of
that, and of its uncertainty (Zhang et al. 2023, section 3.2)."""
_RANKS = "ranks"


def adalora_of(model: nn.Module) -> AdaLoraModel | None:
    """The AdaLoRA of a model that PEFT has wrapped, if that is its method."""
    wrapped = model.base_model if isinstance(model, PeftModel) else None
    return wrapped if isinstance(wrapped, AdaLoraModel) else None


class RankAllocation(TrainerCallback):
    """Lets PEFT's allocator look at the gradients after each optimizer step, and mask the ranks that matter least."""

    def __init__(self, adalora: AdaLoraModel) -> None:
        self._adalora = adalora

    def on_optimizer_step(
        self,
        args: TrainingArguments,  # noqa: ARG002 - Trainer's signature
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        # Trainer counts a step after this call; the allocator counts from 1.
        self._adalora.update_and_allocate(state.global_step + 1)


class OrthogonalityLoss:
    """A loss with AdaLoRA's cost added while it trains; evaluations are of the loss alone.

    The cost is the mean of ||P Pᵀ - I|| over all left and right singular vectors, times `orth_reg_weight`. It does
    not depend on the batch, so each of `micro_steps` micro steps of an optimizer step bears its share, and each of
    the `parts` that a micro step is cut into.
    """

    def __init__(self, loss: Loss, adalora: AdaLoraModel, *, micro_steps: int) -> None:
        self._loss = loss
        self._adalora = adalora
        self._micro_steps = micro_steps
        self.parts = 1

    def __call__(self, batch: Batch, denominator: Tensor | float) -> BatchLoss:
        found = self._loss(batch, denominator)
        if torch.is_grad_enabled():
            found = replace(found, loss=found.loss + self._cost() / (self._micro_steps * self.parts))
        return found

    def _cost(self) -> Tensor:
        config = cast("Any", self._adalora.peft_config[self._adalora.trainable_adapter_name])
        norms = []
        for name, vectors in self._adalora.model.named_parameters():
            if vectors.requires_grad and (".lora_A." in name or ".lora_B." in name):
                covariance = vectors @ vectors.T if ".lora_A." in name else vectors.T @ vectors
                identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
                norms.append(torch.linalg.norm(covariance - identity))
        cost: Tensor = torch.stack(norms).mean() * config.orth_reg_weight
        return cost


def allocation_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What the allocator of `model` remembers, on the CPU; nothing for other methods."""
    adalora = adalora_of(model)
    if adalora is None:
        return {}
    allocator = cast("Any", adalora.rankallocator)
    tensors = {
        f"{ALLOCATION}{mean}/{name}": tensor.detach().cpu().contiguous()
        for mean in _MEANS
        for name, tensor in getattr(allocator, mean).items()
    }
    pattern = cast("Any", adalora.peft_config[adalora.trainable_adapter_name]).rank_pattern or {}
    return tensors | {f"{ALLOCATION}{_RANKS}/{name}": torch.tensor(kept) for name, kept in pattern.items()}


def restore_allocation(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `allocation_tensors` gave. Training must hold the device."""
    adalora = adalora_of(model)
    if adalora is None:
        return
    device = next(adalora.model.parameters()).device
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*_MEANS, _RANKS)}
    for key, tensor in tensors.items():
        if key.startswith(ALLOCATION):
            kind, _, name = key.removeprefix(ALLOCATION).partition("/")
            found[kind][name] = tensor
    allocator = cast("Any", adalora.rankallocator)
    for mean in _MEANS:
        setattr(allocator, mean, {name: tensor.to(device) for name, tensor in found[mean].items()})
    if found[_RANKS]:
        config = cast("Any", adalora.peft_config[adalora.trainable_adapter_name])
        config.rank_pattern = {name: kept.tolist() for name, kept in found[_RANKS].items()}
