"""Small real things to train: a ChatML tokenizer, random Llamas, and rows that can be learned."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tandem.specs import ChatRow, CompletionRow, Hyperparameters, LoraMethod, TrainingRow
from tandem.specs.methods import AnyMethod
from worker.training.data import EncodedData
from worker.training.keeper import SAVE_SECONDS
from worker.training.loop import TrainingOutcome, train
from worker.training.objectives.text_generation import TextGeneration
from worker.training.turns import Turns

SYSTEM = "You are a helpful AI assistant."
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A conversation in the shape that SmolLM2's template gives it, with its default system message."""

COLOURS = {"red": "stop", "green": "go", "blue": "swim", "white": "ski", "black": "sleep", "yellow": "wait"}


def chatml_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few words, with ChatML's special tokens and `template`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [f"system\n{SYSTEM}\nuser\n{asked}\nassistant\n{answer}\n\n" for asked, answer in COLOURS.items()]
    bpe.train_from_iterator(text * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=template,
    )


def tiny_llama(*, tied: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,  # the usual 0.02 keeps the logits of so small a model near 0, whatever it learns
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=400, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    )
    return GPT2LMHeadModel(config).eval()


def chat(*contents: str, first: str = "user") -> ChatRow:
    """A conversation in which user and assistant alternate, `first` speaking first."""
    order = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages = [{"role": order[index % 2], "content": content} for index, content in enumerate(contents)]
    return ChatRow.model_validate({"messages": messages})


def colour_rows() -> list[TrainingRow]:
    """Rows of two shapes and several lengths, which a tiny model can learn by heart."""
    chats: list[TrainingRow] = [chat(asked, answer) for asked, answer in COLOURS.items()]
    completions = [CompletionRow(prompt=f"{asked} means ", completion=answer) for asked, answer in COLOURS.items()]
    return [*chats, *completions]


def encode_texts(
    rows: Iterable[TrainingRow], tokenizer: PreTrainedTokenizerFast, max_tokens: int, *, param: str = "training_file"
) -> EncodedData:
    """What text-generation makes of rows."""
    return TextGeneration(tokenizer, max_tokens).encode(rows, param=param)


def nothing() -> None:
    """A `check` that never stops the training."""


def run_training(
    resident: PreTrainedModel,
    folder: Path,
    *,
    rows: list[TrainingRow] | None = None,
    validation_rows: list[TrainingRow] | None = None,
    turns: Turns | None = None,
    method: AnyMethod | None = None,
    on_event: Callable[[dict[str, Any]], None] = lambda _event: None,
    check: Callable[[], None] = nothing,
    base_revision: str | None = None,
    resume_from: Path | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    save_seconds: float = SAVE_SECONDS,
    options: dict[str, Any] | None = None,
    **hyperparameters: Any,
) -> TrainingOutcome:
    """`train` with small defaults: three steps of four rows. `options` are those of `train` that few tests need."""
    settings = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, **hyperparameters}
    return train(
        resident,
        chatml_tokenizer(),
        base_name="tiny-llama",
        training_rows=colour_rows() if rows is None else rows,
        validation_rows=validation_rows,
        method=method or LoraMethod(),
        hyperparameters=Hyperparameters(**settings),
        turns=turns or Turns(quantum_seconds=0.0),
        on_event=on_event,
        check=check,
        folder=folder,
        base_revision=base_revision,
        resume_from=resume_from,
        on_checkpoint=on_checkpoint,
        save_seconds=save_seconds,
        **(options or {}),
    )
