"""From the method of a spec to PEFT's config, checked against the model that is trained."""

from collections.abc import Sequence
from typing import cast

from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from transformers import PreTrainedModel

from tandem.specs import LoraMethod
from tandem.specs.methods import AnyMethod, Ia3Method, PrefixTuningMethod, PromptTuningMethod, PTuningMethod
from worker.training.targets import ia3_targets, linear_paths, lora_targets, stored_transposed


def peft_config(
    method: AnyMethod,
    model: PreTrainedModel,
    *,
    base_name: str | None = None,
    task_type: str = "CAUSAL_LM",
    trained_whole: Sequence[str] = (),
) -> PeftConfig:
    """PEFT's config for `method` on `model`, which is its base and called `base_name` in the adapter's folder.

    `task_type` is PEFT's name for the task. `trained_whole`: children of the model that are trained and saved as
    they are: a new head. Only methods that change layers can have them.

    Raises InvalidRequest (param `method.target_modules`) when a target names no linear layer of the model, or when
    none is given and none is known.
    """
    match method:
        case LoraMethod():
            config: PeftConfig = _lora(method, model, trained_whole)
        case Ia3Method():
            config = _ia3(method, model, trained_whole)
        case PrefixTuningMethod():
            config = PrefixTuningConfig(
                num_virtual_tokens=method.num_virtual_tokens,
                prefix_projection=method.prefix_projection,
                encoder_hidden_size=cast("int", method.encoder_hidden_size),  # None: PEFT takes the keys' size
            )
        case PromptTuningMethod():
            # PEFT would load a tokenizer by its name to read a text: `start_from_text` has the resident's.
            init = "RANDOM" if method.prompt_tuning_init == "text" else method.prompt_tuning_init.upper()
            config = PromptTuningConfig(num_virtual_tokens=method.num_virtual_tokens, prompt_tuning_init=init)
        case PTuningMethod():
            config = PromptEncoderConfig(
                num_virtual_tokens=method.num_virtual_tokens,
                encoder_reparameterization_type=method.encoder_reparameterization_type,
                encoder_hidden_size=cast("int", method.encoder_hidden_size),
                encoder_num_layers=method.encoder_num_layers,
                encoder_dropout=method.encoder_dropout,
            )
    config.task_type = task_type
    config.base_model_name_or_path = base_name
    return config


def _lora(method: LoraMethod, model: PreTrainedModel, trained_whole: Sequence[str]) -> LoraConfig:
    targets = lora_targets(method, model, linear_paths(model, besides=trained_whole))
    return LoraConfig(
        r=method.r,
        lora_alpha=cast("int", method.alpha),  # PEFT says int and only divides it by the rank
        lora_dropout=method.dropout,
        bias="none",
        fan_in_fan_out=stored_transposed(model, targets),
        target_modules=targets,
        modules_to_save=list(trained_whole) or None,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
    )


def _ia3(method: Ia3Method, model: PreTrainedModel, trained_whole: Sequence[str]) -> IA3Config:
    targets, feedforward = ia3_targets(method, model, linear_paths(model, besides=trained_whole))
    return IA3Config(
        target_modules=targets,
        feedforward_modules=feedforward,
        fan_in_fan_out=stored_transposed(model, targets),
        modules_to_save=list(trained_whole) or None,
    )
