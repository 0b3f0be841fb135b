"""feature-extraction: one vector for a text, by the pooling that its model was trained for, or one a token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tandem.errors import InvalidRequest
from tandem.specs import EmbeddingParameters
from worker.tasks.encoder_task import EncodedText, EncoderTask
from worker.tasks.pooling import model_file, model_poolings, pooled_vectors


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
            InvalidModel: the model's pooling, or a layer after it, is not one that is served.
        """
        super().__init__(model, tokenizer)
        self.poolings = model_poolings(model)
        pooling = model_file(model, "1_Pooling/config.json") or {}
        self._pools_prompts: bool = pooling.get("include_prompt", True)
        self._prompts: dict[str, str] = (model_file(model, "config_sentence_transformers.json") or {}).get(
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
            pooled = pooled_vectors(hidden, mask, self.poolings).cpu()
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
