"""Encoder bodies in folders, and adapters with heads as training leaves them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
)

from tests.unit.encoders.tiny_models import MAX_TOKENS, tiny_tokenizer
from worker.encoders.adapter_heads import head_modules

AUTO_CLASSES: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
}


@dataclass(frozen=True)
class Recipe:
    """How one adapter is made."""

    task_type: str
    rank: int
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    everywhere: bool = False
    """Updates of all the architecture's usual layers, not of its attention's queries and values alone."""
    lora: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "mood": Recipe("SEQ_CLS", 4, ("sad", "glad", "calm")),
    "topic": Recipe("SEQ_CLS", 8, ("sea", "land", "sky", "town", "book"), everywhere=True, lora={"use_rslora": True}),
    "entities": Recipe("TOKEN_CLS", 2, ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), lora={"lora_alpha": 16}),
    "answers": Recipe("QUESTION_ANS", 3, everywhere=True, lora={"rank_pattern": {r".*\.1\..*": 5}}),
    "tags": Recipe("SEQ_CLS", 1, ("old", "long"), config={"problem_type": "multi_label_classification"}),
}
"""Adapters of several ranks, targets, label counts and tasks."""

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_TOKENS,
    "initializer_range": 0.2,
}
TARGETS: dict[str, tuple[list[str], list[str]]] = {
    "bert": (["query", "value"], ["query", "key", "value", "dense"]),
    "roberta": (["query", "value"], ["query", "key", "value", "output.dense", "intermediate.dense"]),
    "distilbert": (["q_lin", "v_lin"], ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"]),
    "deberta-v2": (["value_proj"], ["query_proj", "key_proj", "value_proj", "output.dense"]),
    "modernbert": (["Wqkv"], ["Wqkv", "Wo", "Wi"]),
    "electra": (["query", "value"], ["query", "key", "value", "output.dense"]),
    "llama": (["q_proj", "v_proj"], ["q_proj", "k_proj", "o_proj", "up_proj", "down_proj"]),
    "mpnet": (["attn.q", "attn.v"], ["attn.q", "attn.k", "attn.v", "attn.o", "output.dense"]),
}
"""Architecture → layers that adapters update: few, and many. BERT's `dense` is also that of its pooler."""


def _config(architecture: str, vocabulary: int, pad: int) -> Any:
    shared: dict[str, Any] = SIZES | {"vocab_size": vocabulary, "pad_token_id": pad}
    after_pad = shared | {"max_position_embeddings": MAX_TOKENS + pad + 1}
    match architecture:
        case "bert":
            return BertConfig(**shared)
        case "roberta":
            return RobertaConfig(**after_pad)
        case "distilbert":
            sizes = {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
            return DistilBertConfig(**{key: shared[key] for key in ("vocab_size", "pad_token_id")}, **sizes)
        case "deberta-v2":
            # As DeBERTa-v3: positions are relative, and projected by the layers that project the tokens.
            return DebertaV2Config(
                **shared,
                relative_attention=True,
                position_buckets=8,
                share_att_key=True,
                pos_att_type=["p2c", "c2p"],
                norm_rel_ebd="layer_norm",
            )
        case "modernbert":
            return ModernBertConfig(
                **shared, reference_compile=False, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3
            )
        case "electra":
            return ElectraConfig(**shared, embedding_size=16)
        case "llama":
            return LlamaConfig(**shared, num_key_value_heads=2, bos_token_id=2, eos_token_id=3)
    return MPNetConfig(**after_pad)


def save_body(architecture: str, folder: Path, *, seed: int = 7, **sizes: Any) -> Path:
    """A tiny random body with its tokenizer."""
    tokenizer = tiny_tokenizer("roberta" if architecture in ("roberta", "mpnet") else architecture)
    if architecture in ("deberta-v2", "electra", "llama", "modernbert"):
        tokenizer = tiny_tokenizer("distilbert")
    config = _config(architecture, len(tokenizer), tokenizer.pad_token_id)
    config.update(sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(body: Path, folder: Path, recipe: Recipe, *, seed: int, **lora: Any) -> PreTrainedModel:
    """Make the adapter of `recipe` over the body, save it as training does, and return its trained model."""
    few, many = TARGETS[AutoConfig.from_pretrained(body).model_type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AUTO_CLASSES[recipe.task_type].from_pretrained(
            body, id2label=dict(enumerate(recipe.labels)), **recipe.config, dtype=torch.float32
        )
        settings = {
            "r": recipe.rank,
            "lora_alpha": 8,
            "target_modules": many if recipe.everywhere else few,
            "modules_to_save": head_modules(model),
        }
        trained = get_peft_model(model, LoraConfig(task_type=recipe.task_type, **settings | recipe.lora | lora))
        with torch.no_grad():
            for name, weight in trained.named_parameters():
                if "lora_" in name:
                    weight.normal_(std=0.1)
                elif "modules_to_save" in name:
                    weight.normal_(std=0.5)
    trained.save_pretrained(folder)
    model.config.save_pretrained(folder)
    return trained.eval()


def library_model(body: Path, folder: Path, task_type: str) -> PreTrainedModel:
    """The adapter as PEFT loads it: the headed model with its updates in place."""
    config = AutoConfig.from_pretrained(folder)
    model = AUTO_CLASSES[task_type].from_pretrained(body, config=config, dtype=torch.float32)
    return PeftModel.from_pretrained(model, folder).eval().base_model.model
