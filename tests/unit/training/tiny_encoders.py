"""Small real encoders to train adapters on: random bodies of three families, their tokenizers, and rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
)

from tandem.specs import Hyperparameters, LoraMethod
from tandem.specs.finetune import FineTuneTask
from tandem.specs.methods import AnyMethod
from tandem.specs.training_rows import (
    AnchorRow,
    QuestionAnsweringRow,
    TextClassificationRow,
    TokenClassificationRow,
    TrainingRow,
)
from tests.tiny_models.tokenizers import bart_pieces, word_pieces
from worker.training.loop import TrainingOutcome, train
from worker.training.turns import Turns

POSITIONS = 96
"""Tokens that each of the bodies reads: fewer than its tokenizer would let pass."""

TEXTS = {
    "the cat sat on the mat": "animals",
    "a dog barked at the cat": "animals",
    "the dog sat at the sea": "animals",
    "what is the total price": "money",
    "the price of the invoice": "money",
    "the bank in London": "money",
    "rain fell on the old town": "weather",
    "the sea was calm": "weather",
    "rain fell all night": "weather",
}
SENTENCES = (
    ("Anna Smith works at the bank in London", "B-PER I-PER O O O O O B-LOC"),
    ("the old man slept in Paris", "O O O O O B-LOC"),
    ("yes , Anna", "O O B-PER"),
    ("who won the match in Paris", "O O O O O B-LOC"),
    ("Smith works in London", "B-PER O O B-LOC"),
)
QUESTIONS = (
    ("what sat on the mat", "the cat sat on the mat", "the cat"),
    ("who works at the bank", "yes , Anna Smith works at the bank in London", "Anna Smith"),
    ("what was calm", "the sea was calm and the night was long", "the sea"),
    ("who slept", "calm was the sea", ""),
)

PAIRS = (
    ("what sat on the mat", "the cat", "a dog"),
    ("who barked at the cat", "a dog barked at the cat , all night", None),
    ("what fell on the old town", "rain", "the sea"),
    ("who works at the bank", "Anna Smith works at the bank in London", None),
    ("what was calm", "the sea", "the night was long"),
    ("who slept", "the old man", None),
    ("who won the match in Paris", "Smith", None),
    ("what is the total price", "the price of the invoice", "the bank"),
)


def anchor_rows() -> list[TrainingRow]:
    """Questions and their answers; some with an answer that is wrong."""
    return [AnchorRow(anchor=asked, positive=right, negative=wrong) for asked, right, wrong in PAIRS]


def text_rows() -> list[TrainingRow]:
    """Single texts, of several lengths, in three classes."""
    return [TextClassificationRow(text=text, label=label) for text, label in TEXTS.items()]


def tagged_rows() -> list[TrainingRow]:
    return [TokenClassificationRow(tokens=tuple(t.split()), tags=tuple(tags.split())) for t, tags in SENTENCES]


def question(question: str, context: str, *answers: str) -> QuestionAnsweringRow:
    given = {"text": answers, "answer_start": [context.index(answer) for answer in answers]}
    return QuestionAnsweringRow.model_validate({"question": question, "context": context, "answers": given})


def question_rows() -> list[TrainingRow]:
    """The last one has no answer."""
    return [question(asked, context, *([answer] if answer else [])) for asked, context, answer in QUESTIONS]


ROWS: dict[FineTuneTask, Callable[[], list[TrainingRow]]] = {
    "text-classification": text_rows,
    "token-classification": tagged_rows,
    "question-answering": question_rows,
    "feature-extraction": anchor_rows,
}
TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {
    "bert": word_pieces(),
    "roberta": bart_pieces(),
    "distilbert": word_pieces(),
}
TOKENIZERS["distilbert"].model_input_names = ["input_ids", "attention_mask"]  # it knows no token types


def body_config(family: str) -> PreTrainedConfig:
    """Two layers of 32; a wide initialisation, since the usual one keeps so small a model's outputs near 0."""
    tokenizer = TOKENIZERS[family]
    shared: dict[str, Any] = {"vocab_size": len(tokenizer), "initializer_range": 0.2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    if family == "bert":
        return BertConfig(**shared, **sizes, max_position_embeddings=POSITIONS)
    if family == "roberta":
        padding = tokenizer.pad_token_id
        positions = POSITIONS + padding + 1  # the first ones, up to the padding id's, are not used
        return RobertaConfig(
            **shared, **sizes, max_position_embeddings=positions, pad_token_id=padding, type_vocab_size=1
        )
    return DistilBertConfig(**shared, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=POSITIONS)


def tiny_body(family: str = "bert", *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    body: PreTrainedModel = AutoModel.from_config(body_config(family)).to(dtype)
    return body.eval()


def learn(
    body: PreTrainedModel,
    folder: Path,
    task: FineTuneTask = "text-classification",
    *,
    family: str = "bert",
    rows: list[TrainingRow] | None = None,
    validation_rows: list[TrainingRow] | None = None,
    method: AnyMethod | None = None,
    on_event: Callable[[dict[str, Any]], None] = lambda _event: None,
    check: Callable[[], None] = lambda: None,
    turns: Turns | None = None,
    resume_from: Path | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    **hyperparameters: Any,
) -> TrainingOutcome:
    """`train` with small defaults: four steps of three rows."""
    settings = {"max_steps": 4, "batch_size": 3, "learning_rate": 1e-2, **hyperparameters}
    return train(
        body,
        TOKENIZERS[family],
        base_name=f"tiny-{family}",
        task=task,
        training_rows=ROWS[task]() if rows is None else rows,
        validation_rows=validation_rows,
        method=method or LoraMethod(),
        hyperparameters=Hyperparameters(**settings),
        turns=turns or Turns(quantum_seconds=0.0),
        on_event=on_event,
        check=check,
        folder=folder,
        resume_from=resume_from,
        on_checkpoint=on_checkpoint,
    )


def body_without_pooler() -> PreTrainedModel:
    return BertModel(body_config("bert"), add_pooling_layer=False).eval()
