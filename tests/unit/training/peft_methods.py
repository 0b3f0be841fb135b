"""Every method of fine-tuning, as Tandem's specs and as PEFT's own configurations say it."""

import json
from collections.abc import Callable
from pathlib import Path

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


def has_transposed_layers(base: Path) -> bool:
    """PEFT asks its users to know this of GPT-2."""
    return bool(json.loads((base / "config.json").read_text())["model_type"] == "gpt2")


TEXT = "stop and go"
LORA_SETTINGS = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
VIRTUAL = {"num_virtual_tokens": 5}

METHODS: dict[str, tuple[AnyMethod, Callable[[Path], PeftConfig]]] = {
    "rslora": (LoraMethod(use_rslora=True), lambda _: LoraConfig(use_rslora=True, **LORA_SETTINGS)),
    "dora": (LoraMethod(use_dora=True), lambda _: LoraConfig(use_dora=True, **LORA_SETTINGS)),
    "dora with dropout": (
        LoraMethod(use_dora=True, dropout=0.2),
        lambda _: LoraConfig(use_dora=True, lora_dropout=0.2, **LORA_SETTINGS),
    ),
    "adalora": (
        AdaLoraMethod(type="adalora", init_r=6, target_r=2, tfinal=1, beta1=0.5),
        # PEFT's forward adds the cost of its vectors to each of the two micro steps.
        lambda _: AdaLoraConfig(
            init_r=6, target_r=2, tfinal=1, beta1=0.5, total_step=4, orth_reg_weight=0.25, **LORA_SETTINGS
        ),
    ),
    "loha": (
        LohaMethod(type="loha", r=4, alpha=6),
        lambda _: LoHaConfig(r=4, alpha=6, target_modules=["q_proj", "v_proj"]),
    ),
    "lokr": (
        LokrMethod(type="lokr", r=2, decompose_both=True, target_modules=("down_proj", "q_proj")),
        lambda _: LoKrConfig(r=2, decompose_both=True, target_modules=["down_proj", "q_proj"]),
    ),
    "vera": (
        VeraMethod(type="vera", r=16, dropout=0.1),
        lambda _: VeraConfig(r=16, vera_dropout=0.1, target_modules=["q_proj", "v_proj"]),
    ),
    "oft": (
        OftMethod(type="oft", oft_block_size=8),
        lambda _: OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, target_modules=["q_proj", "v_proj"]),
    ),
    "ia3": (Ia3Method(type="ia3"), lambda base: IA3Config(fan_in_fan_out=has_transposed_layers(base))),
    "ia3 of named layers": (
        Ia3Method(type="ia3", target_modules=("q_proj", "up_proj"), feedforward_modules=("up_proj",)),
        lambda _: IA3Config(target_modules=["q_proj", "up_proj"], feedforward_modules=["up_proj"]),
    ),
    "prefix": (PrefixTuningMethod(type="prefix-tuning", **VIRTUAL), lambda _: PrefixTuningConfig(**VIRTUAL)),
    "prefix, projected": (
        PrefixTuningMethod(type="prefix-tuning", prefix_projection=True, encoder_hidden_size=24, **VIRTUAL),
        lambda _: PrefixTuningConfig(prefix_projection=True, encoder_hidden_size=24, **VIRTUAL),
    ),
    "prompt": (PromptTuningMethod(type="prompt-tuning", **VIRTUAL), lambda _: PromptTuningConfig(**VIRTUAL)),
    "prompt of the vocabulary": (
        PromptTuningMethod(type="prompt-tuning", prompt_tuning_init="sample_vocab", **VIRTUAL),
        lambda _: PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **VIRTUAL),
    ),
    "prompt of a text": (
        PromptTuningMethod(type="prompt-tuning", prompt_tuning_init="text", prompt_tuning_init_text=TEXT, **VIRTUAL),
        lambda base: PromptTuningConfig(
            prompt_tuning_init="TEXT", prompt_tuning_init_text=TEXT, tokenizer_name_or_path=str(base), **VIRTUAL
        ),
    ),
    "p-tuning": (PTuningMethod(type="p-tuning", **VIRTUAL), lambda _: PromptEncoderConfig(**VIRTUAL)),
    "p-tuning, recurrent": (
        PTuningMethod(
            type="p-tuning",
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=16,
            encoder_num_layers=2,
            encoder_dropout=0.2,
            **VIRTUAL,
        ),
        lambda _: PromptEncoderConfig(
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=16,
            encoder_num_layers=2,
            encoder_dropout=0.2,
            **VIRTUAL,
        ),
    ),
}
"""Each method, and what PEFT's own user writes for it, given the folder of the base."""
