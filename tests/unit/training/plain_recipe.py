"""What the plain recipes share: PEFT and transformers' own trainer alone, to hold Tandem's training against."""

from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import torch
from peft import AdaLoraModel, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments

ADAPTER = "adapter_model.safetensors"
SEED = 3

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter or wraps a model.
PEFT_WARNINGS = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT suspects a fault of sharding where AdaLoRA has taken all ranks of a layer,
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape:peft.utils.warning.PeftWarning"),
    # and looks for the ranks that it kept by LoRA's rule too, under which they match nothing.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]

Kind = TypeVar("Kind", bound=TrainingArguments)


def arguments(kind: type[Kind], scratch: Path, **more: Any) -> Kind:
    return kind(
        output_dir=str(scratch),
        seed=SEED,
        data_seed=SEED,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        **more,
    )


class SeedsTheFirstStep(TrainerCallback):
    """Trainer seeds torch, and then its DataLoader draws a number before the first dropout does. Tandem's training
    has a random state of its own, which the DataLoader does not reach."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step == 0:
            torch.manual_seed(SEED)


class AllocatesRanks(TrainerCallback):
    """PEFT's documentation asks its users for this call after each optimizer step."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, *_: Any, model: PeftModel | None = None, **__: Any
    ) -> None:
        assert model is not None
        cast("AdaLoraModel", model.base_model).update_and_allocate(state.global_step + 1)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / ADAPTER)


def assert_the_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """But for the order in which sums were taken."""
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0.0, atol=1e-6, msg=lambda text, key=key: f"{key} {text}")
