"""From the method of a spec to PEFT's config, checked against the model that is trained."""

from collections.abc import Sequence
from typing import Any, cast

from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
)
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tandem.errors import InvalidRequest
from tandem.specs.methods import (
    AdaLoraMethod,
    AnyMethod,
    Ia3Method,
    LohaMethod,
    LokrMethod,
    LoraMethod,
    OftMethod,
    PrefixTuningMethod,
    PromptTuningMethod,
    PTuningMethod,
    VeraMethod,
)
from worker.training.targets import (
    UpdateMethod,
    ia3_targets,
    linear_paths,
    names,
    stored_transposed,
    update_targets,
)


def peft_config(
    method: AnyMethod,
    model: PreTrainedModel,
    *,
    base_name: str | None = None,
    task_type: str = "CAUSAL_LM",
    trained_whole: Sequence[str] = (),
    total_steps: int | None = None,
) -> PeftConfig:
    """PEFT's config for `method` on `model`, which is its base and called `base_name` in the adapter's folder.

    `task_type` is PEFT's name for the task. `trained_whole`: children of the model that are trained and saved as
    they are: a new head. Only methods that change layers can have them. `total_steps` are the training's optimizer
    steps, which AdaLoRA's schedule is made for.

    Raises InvalidRequest (param `method.target_modules`) when a target names no linear layer of the model, or when
    none is given and none is known.
    """
    match method:
        case LoraMethod() | AdaLoraMethod() | LohaMethod() | LokrMethod() | VeraMethod() | OftMethod():
            config: PeftConfig = _update(method, model, trained_whole, total_steps)
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


def _update(
    method: UpdateMethod, model: PreTrainedModel, trained_whole: Sequence[str], total_steps: int | None
) -> PeftConfig:
    targets = update_targets(method, model, linear_paths(model, besides=trained_whole))
    common: dict[str, Any] = {"target_modules": targets, "modules_to_save": list(trained_whole) or None}
    transposed = stored_transposed(model, targets)
    if transposed and isinstance(method, LohaMethod | LokrMethod | OftMethod):
        raise InvalidRequest(
            f"PEFT's {method.type} takes no layers that store their weights transposed, as "
            f"{type(model).__name__}'s do: use lora, adalora, vera or ia3",
            param="method.type",
        )
    match method:
        case LoraMethod():
            return LoraConfig(
                r=method.r,
                lora_alpha=cast("int", method.alpha),  # PEFT says int and only divides it by the rank
                lora_dropout=method.dropout,
                bias="none",
                fan_in_fan_out=transposed,
                use_rslora=method.use_rslora,
                use_dora=method.use_dora,
                **common,
            )
        case AdaLoraMethod():
            return _adalora(method, total_steps, transposed, common)
        case LohaMethod():
            return LoHaConfig(
                r=method.r,
                alpha=cast("int", method.alpha),
                rank_dropout=method.rank_dropout,
                module_dropout=method.module_dropout,
                **common,
            )
        case LokrMethod():
            return LoKrConfig(
                r=method.r,
                alpha=cast("int", method.alpha),
                decompose_both=method.decompose_both,
                decompose_factor=method.decompose_factor,
                rank_dropout=method.rank_dropout,
                module_dropout=method.module_dropout,
                **common,
            )
        case VeraMethod():
            return VeraConfig(
                r=method.r,
                vera_dropout=method.dropout,
                d_initial=method.d_initial,
                projection_prng_key=method.projection_prng_key,
                save_projection=True,
                fan_in_fan_out=transposed,
                **common,
            )
        case OftMethod():
            return OFTConfig(
                r=0,
                oft_block_size=_oft_block_size(method, model, targets),
                module_dropout=method.module_dropout,
                coft=method.coft,
                eps=method.eps,
                block_share=method.block_share,
                fan_in_fan_out=transposed,
                # The exact inverse: the approximation's terms are one more thing that has to be the same elsewhere.
                use_cayley_neumann=False,
                **common,
            )


def _adalora(
    method: AdaLoraMethod, total_steps: int | None, transposed: bool, common: dict[str, Any]
) -> AdaLoraConfig:
    """Raises InvalidRequest for a schedule that leaves no step to take ranks away in."""
    if total_steps is None:
        raise ValueError("AdaLoRA's schedule needs the number of optimizer steps")
    if method.tinit >= total_steps - method.tfinal:
        raise InvalidRequest(
            f"`tinit` ({method.tinit}) and `tfinal` ({method.tfinal}) leave none of the training's {total_steps} "
            "optimizer steps to take ranks away in: lower them, or train longer",
            param="method.tinit",
        )
    return AdaLoraConfig(
        init_r=method.init_r,
        target_r=method.target_r,
        lora_alpha=cast("int", method.alpha),
        lora_dropout=method.dropout,
        tinit=method.tinit,
        tfinal=method.tfinal,
        deltaT=method.delta_t,
        beta1=method.beta1,
        beta2=method.beta2,
        orth_reg_weight=method.orth_reg_weight,
        total_step=total_steps,
        fan_in_fan_out=transposed,
        **common,
    )


def _oft_block_size(method: OftMethod, model: PreTrainedModel, targets: Sequence[str]) -> int:
    """PEFT would take another size for a layer that it does not divide, and say so in the worker's log alone."""
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and any(names(target, path) for target in targets):
            inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.nx
            if inputs % method.oft_block_size:
                raise InvalidRequest(
                    f"{path} has {inputs} inputs, which blocks of {method.oft_block_size} do not divide",
                    param="method.oft_block_size",
                )
    return method.oft_block_size


def _ia3(method: Ia3Method, model: PreTrainedModel, trained_whole: Sequence[str]) -> IA3Config:
    targets, feedforward = ia3_targets(method, model, linear_paths(model, besides=trained_whole))
    return IA3Config(
        target_modules=targets,
        feedforward_modules=feedforward,
        fan_in_fan_out=stored_transposed(model, targets),
        modules_to_save=list(trained_whole) or None,
    )
