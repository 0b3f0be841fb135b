"""The adapter of a training: put onto the twin before the first step, written as PEFT reads it after the last."""

import copy
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any, cast

from peft import PeftModel, get_peft_model
from peft.utils.warning import PeftWarning
from transformers import PreTrainedModel

from tandem.errors import InvalidRequest
from tandem.specs.methods import AnyMethod, LoraMethod, PromptTuningMethod
from tandem.specs.peft_config import CONFIG_FILE, MODEL_CONFIG_FILE, WEIGHTS_FILE
from worker.engine.adapters.linear_update import has_four_bits
from worker.training.heads import head_names
from worker.training.methods import peft_config
from worker.training.objectives import Objective
from worker.training.virtual_tokens import refuse_unfit, start_from_text


def attach_adapter(
    twin: PreTrainedModel, method: AnyMethod, base_name: str, objective: Objective, *, total_steps: int
) -> PeftModel:
    """A new adapter on the twin, in eval mode. Training must hold the device.

    `total_steps` are the training's optimizer steps. Raises InvalidRequest for a method, or targets of it, that the
    model does not take.
    """
    if any(map(has_four_bits, twin.modules())) and (not isinstance(method, LoraMethod) or method.use_dora):
        raise InvalidRequest(
            "this model's weights are held in 4 bits, over which only `lora` without `use_dora` is trained",
            param="method.type",
        )
    config = peft_config(
        method,
        twin,
        base_name=base_name,
        task_type=objective.task_type,
        trained_whole=() if objective.head is None else head_names(twin),
        total_steps=total_steps,
    )
    twin.name_or_path = base_name  # PEFT takes the name that the adapter's config gives to its base from here
    with warnings.catch_warnings():
        # PEFT 0.21 reads a property that transformers 5.23 has renamed; both names hold the same until v6.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        try:
            model = get_peft_model(twin, config)
        except ValueError as error:
            if not config.is_prompt_learning:
                raise
            # PEFT derives the virtual tokens' sizes from names in the model's config, which this one lacks.
            raise InvalidRequest(
                f"virtual tokens cannot stand before the text of {type(twin).__name__}: {error}", param="method.type"
            ) from error
    if not isinstance(model, PeftModel):
        raise TypeError(f"PEFT made a {type(model).__name__}, whose adapter cannot be saved alone")
    model.eval()  # its new modules begin in train mode, where dropout would draw from training's random numbers
    refuse_unfit(model, twin)
    if isinstance(method, PromptTuningMethod) and method.prompt_tuning_init_text is not None:
        start_from_text(model, objective.tokenizer(method.prompt_tuning_init_text)["input_ids"])
    return model


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write `adapter_model.safetensors`, `adapter_config.json` and, for a model with a new head, its `config.json`;
    on an error nothing is left in `folder`.

    Of virtual tokens that are trained through a network, what it makes of them is written.
    """
    model.eval()  # such a network may have dropout, which belongs to training alone
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=folder) as unfinished, warnings.catch_warnings():
        # PEFT suspects a fault of sharding where AdaLoRA has taken all ranks of a layer.
        warnings.filterwarnings("ignore", "Adapter 'default'.*invalid shape", PeftWarning)
        # Nothing of the embedding is trained, so PEFT need not ask a hub whether the vocabulary has grown.
        model.save_pretrained(unfinished, save_embedding_layers=False)
        config_file = Path(unfinished) / CONFIG_FILE
        config = _in_order(json.loads(config_file.read_text()))
        names = [WEIGHTS_FILE, CONFIG_FILE]
        if config.get("modules_to_save") is not None:
            _save_model_config(cast("PreTrainedModel", model.get_base_model()), Path(unfinished) / MODEL_CONFIG_FILE)
            names.append(MODEL_CONFIG_FILE)
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name in names:
            (Path(unfinished) / name).replace(folder / name)


def _in_order(config: dict[str, Any]) -> dict[str, Any]:
    """PEFT's config with its sets of names in order, which differs from process to process, and each name once: PEFT
    adds its own names for the task's head to those that it was given."""
    for field in ("target_modules", "feedforward_modules", "modules_to_save"):
        if config.get(field) is not None:
            config[field] = sorted(set(config[field]))
    return config


def _save_model_config(model: PreTrainedModel, file: Path) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.to_json_file(str(file))
