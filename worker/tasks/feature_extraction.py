"""feature-extraction: one vector for a text, by the pooling that its model was trained for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.hub import cached_file

from tandem.errors import InvalidModel
from tandem.specs import EmbeddingParameters
from worker.tasks.encoder_task import EncodedText, EncoderTask

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len")
"""What `1_Pooling/config.json` may ask for, in the order in which sentence-transformers joins several."""

MODULES = ("Transformer", "Pooling", "Normalize")
"""sentence-transformers modules that are served. Normalize is the request's own parameter here."""


class FeatureExtraction(EncoderTask[EmbeddingParameters, list[float]]):
    """Sentence embeddings: the mean over a text's tokens, or what the model's `1_Pooling/config.json` says."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """
        Raises:
            InvalidModel: the model's pooling, or a layer after it, is not one of those above.
        """
        super().__init__(model, tokenizer)
        self.poolings = _poolings(model)

    def shorten(
        self, row: EncodedText, special_tokens_mask: list[int], name: str, parameters: EmbeddingParameters
    ) -> EncodedText:
        """Cut the text's end and keep the special tokens that close it, if the request allows it."""
        if not parameters.truncate:
            return super().shorten(row, special_tokens_mask, name, parameters)
        closing = 0
        while closing < len(row) and special_tokens_mask[len(row) - 1 - closing]:
            closing += 1
        kept = [*range(self.max_tokens - closing), *range(len(row) - closing, len(row))]
        kinds = row.token_type_ids
        return EncodedText([row.input_ids[i] for i in kept], None if kinds is None else [kinds[i] for i in kept])

    def forward(self, rows: Sequence[EncodedText]) -> Tensor:
        """Pooled vectors [rows, hidden · poolings]."""
        batch = self.pad(rows)
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            return torch.cat([_pool(hidden, mask, pooling) for pooling in self.poolings], dim=-1).cpu()

    def result(self, output: Tensor, _row: EncodedText, parameters: EmbeddingParameters) -> list[float]:
        vector: list[float] = (F.normalize(output, dim=0) if parameters.normalize else output).tolist()
        return vector


def _pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector a row, [rows, hidden], from token vectors [rows, tokens, hidden] and mask [rows, tokens, 1]."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(mask == 0, float("-inf")).amax(dim=1)
    total, count = (hidden * mask).sum(dim=1), mask.sum(dim=1)
    return total / (count if pooling == "mean" else count.sqrt())


def _poolings(model: Any) -> list[str]:
    """The model's poolings, from the files that sentence-transformers saves beside it; the mean without them."""
    for module in _model_file(model, "modules.json") or []:
        if module["type"].rsplit(".", 1)[-1] not in MODULES:
            raise InvalidModel(
                f"{model.name_or_path} makes its embeddings with a {module['type']} layer, which is not served; "
                f"served are {', '.join(MODULES)}."
            )
    config = _model_file(model, "1_Pooling/config.json")
    if config is None:
        return ["mean"]
    # Two generations of the file: one flag a pooling (`pooling_mode_mean_tokens`), or one name (`pooling_mode`).
    if isinstance(config.get("pooling_mode"), str):
        chosen = {config["pooling_mode"]}
    else:
        flags = {key for key, value in config.items() if key.startswith("pooling_mode_") and value is True}
        chosen = {key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens") for key in flags}
    if not chosen or not chosen <= set(POOLINGS):
        raise InvalidModel(
            f"{model.name_or_path} asks for the pooling {', '.join(sorted(chosen)) or 'none'}; served are "
            f"{', '.join(POOLINGS)}."
        )
    return [pooling for pooling in POOLINGS if pooling in chosen]


def _model_file(model: Any, name: str) -> Any:
    """A JSON file beside the model's weights (its folder, or the hub's local cache); None where there is none."""
    if not model.name_or_path:
        return None
    path = cached_file(
        model.name_or_path,
        name,
        revision=getattr(model.config, "_commit_hash", None),
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    return json.loads(Path(path).read_text(encoding="utf-8"))
