"""feature-extraction: one vector for a text, by the pooling that its model was trained for, or one a token."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.hub import cached_file

from tandem.errors import InvalidModel, InvalidRequest
from tandem.specs import EmbeddingParameters
from worker.tasks.encoder_task import EncodedText, EncoderTask

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len")
"""What `1_Pooling/config.json` may ask for, in the order in which sentence-transformers joins several."""

MODULES = ("Transformer", "Pooling", "Normalize")
"""sentence-transformers modules that are served. Normalize is the request's own parameter here."""


@dataclass(frozen=True, slots=True)
class TextToEmbed(EncodedText):
    """A text, and what is asked of its token vectors."""

    is_pooled: bool = True
    prompt_tokens: int = 0
    """At its head, which the pooling leaves out."""


class FeatureExtraction(EncoderTask[EmbeddingParameters, list[Any]]):
    """Sentence embeddings: the mean over a text's tokens, or what the model's `1_Pooling/config.json` says.

    A result is a vector [hidden · poolings], or [tokens, hidden] with `pooling: none`, as nested lists.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """
        Raises:
            InvalidModel: the model's pooling, or a layer after it, is not one of those above.
        """
        super().__init__(model, tokenizer)
        pooling = _model_file(model, "1_Pooling/config.json")
        self.poolings = _poolings(model, pooling)
        self._pools_prompts: bool = (pooling or {}).get("include_prompt", True)
        self._prompts: dict[str, str] = (_model_file(model, "config_sentence_transformers.json") or {}).get(
            "prompts", {}
        )

    def encode_named(
        self, texts: Sequence[str], names: Sequence[str], parameters: EmbeddingParameters
    ) -> list[EncodedText]:
        """Raises InvalidRequest also for a prompt that the model has not."""
        prompt = self._prompt(parameters)
        rows = super().encode_named([prompt + text for text in texts], names, parameters)
        left_out = self._tokens_at_head(prompt) if prompt and not self._pools_prompts else 0
        is_pooled = parameters.pooling == "model"
        return [TextToEmbed(row.input_ids, row.token_type_ids, is_pooled, left_out) for row in rows]

    def shorten(
        self, row: EncodedText, special_tokens_mask: list[int], name: str, parameters: EmbeddingParameters
    ) -> EncodedText:
        """Cut the text at one end and keep the special tokens around it, if the request allows it."""
        if not parameters.truncate:
            return super().shorten(row, special_tokens_mask, name, parameters)
        if parameters.truncation_direction == "right":
            closing = _special_tokens(special_tokens_mask[::-1])
            kept = [*range(self.max_tokens - closing), *range(len(row) - closing, len(row))]
        else:
            opening = _special_tokens(special_tokens_mask)
            kept = [*range(opening), *range(len(row) - self.max_tokens + opening, len(row))]
        kinds = row.token_type_ids
        return EncodedText([row.input_ids[i] for i in kept], None if kinds is None else [kinds[i] for i in kept])

    def run_rows(self, rows: Sequence[EncodedText]) -> list[Tensor]:
        """For each row its pooled vector [hidden · poolings], or its token vectors [tokens, hidden]."""
        asked = [
            row if isinstance(row, TextToEmbed) else TextToEmbed(row.input_ids, row.token_type_ids) for row in rows
        ]
        batch = self.pad(rows)
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1).clone()
            for number, row in enumerate(asked):
                mask[number, : row.prompt_tokens] = 0
            pooled = torch.cat([_pool(hidden, mask, pooling) for pooling in self.poolings], dim=-1).cpu()
            return [
                pooled[number] if row.is_pooled else hidden[number, : len(row)].cpu()
                for number, row in enumerate(asked)
            ]

    def row_result(self, output: Tensor, row: EncodedText, parameters: EmbeddingParameters) -> list[Any]:
        vectors: list[Any] = self.vector(output, row, parameters).tolist()
        return vectors

    def vector(self, output: Tensor, _row: EncodedText, parameters: EmbeddingParameters) -> Tensor:
        """[hidden · poolings] or [tokens, hidden], each vector of length 1 if that is asked for."""
        is_pooled = parameters.pooling == "model"
        normalize = is_pooled if parameters.normalize is None else parameters.normalize
        return F.normalize(output, dim=-1) if normalize else output

    def _prompt(self, parameters: EmbeddingParameters) -> str:
        if parameters.prompt_name is None:
            return ""
        if parameters.prompt_name not in self._prompts:
            has = f"it has {', '.join(sorted(self._prompts))}" if self._prompts else "it has none"
            raise InvalidRequest(
                f"`parameters.prompt_name`: the model has no prompt {parameters.prompt_name!r}; {has}",
                param="parameters.prompt_name",
            )
        return self._prompts[parameters.prompt_name]

    def _tokens_at_head(self, prompt: str) -> int:
        """Tokens of the prompt with the special ones before it, as sentence-transformers counts them."""
        encoded = self._tokenize([prompt])
        return len(encoded["input_ids"][0]) - _special_tokens(encoded["special_tokens_mask"][0][::-1])


def _special_tokens(mask: Sequence[int]) -> int:
    """How many special tokens stand at the beginning."""
    return next((place for place, is_special in enumerate(mask) if not is_special), len(mask))


def _pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector a row, [rows, hidden], from token vectors [rows, tokens, hidden] and mask [rows, tokens, 1]."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "max":
        return hidden.masked_fill(mask == 0, float("-inf")).amax(dim=1)
    total, count = (hidden * mask).sum(dim=1), mask.sum(dim=1)
    return total / (count if pooling == "mean" else count.sqrt())


def _poolings(model: Any, config: Any) -> list[str]:
    """The model's poolings, from the files that sentence-transformers saves beside it; the mean without them."""
    for module in _model_file(model, "modules.json") or []:
        if module["type"].rsplit(".", 1)[-1] not in MODULES:
            raise InvalidModel(
                f"{model.name_or_path} makes its embeddings with a {module['type']} layer, which is not served; "
                f"served are {', '.join(MODULES)}."
            )
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
