"""How long a text may be for a model that learned a vector for each position.

Beyond its table such a model fails, and on a GPU it takes the process with it. Models that compute their positions
have no such end.
"""

from typing import Any

from torch import nn

TABLES = ("position_embeddings", "embed_positions", "wpe")
"""What transformers' models call their tables of positions (BERT's kin, BART's kin, GPT-2's kin)."""


def input_positions(model: nn.Module) -> int | None:
    """Tokens of the longest input; None without a table. Of a decoder, what it writes counts as well."""
    return _smallest(model, of_decoder=False)


def written_positions(model: nn.Module) -> int | None:
    """Tokens that an encoder-decoder can write; None without a table, and for all other models."""
    return _smallest(model, of_decoder=True)


def _smallest(model: Any, *, of_decoder: bool) -> int | None:
    sizes = []
    for name, module in model.named_modules():
        *path, last = name.split(".")
        if last not in TABLES or not isinstance(module, nn.Embedding):
            continue
        if of_decoder == (bool(model.config.is_encoder_decoder) and "decoder" in path):
            sizes.append(module.num_embeddings - _reserved(module))
    return min(sizes, default=None)


def _reserved(table: nn.Embedding) -> int:
    """Entries at the table's head that stand for no position: BART's offset, RoBERTa's up to its padding id."""
    offset: int = getattr(table, "offset", 0)
    return offset or (0 if table.padding_idx is None else table.padding_idx + 1)
