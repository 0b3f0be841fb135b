"""fill-mask: the most probable tokens for each mask token of a text."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypedDict

import torch
from torch import Tensor

from tandem.errors import InvalidRequest, UnsupportedTask
from tandem.specs import FillMaskParameters
from worker.tasks.encoder_task import EncodedText, EncoderTask

HEAD_MASKS = 2048
"""Masks in one pass of the head, unless one text has more: 2,048 times BERT's vocabulary are 250 MB of floats."""
REMEMBERED_TARGETS = 64
"""Lists of target words whose token ids are kept: a job's rows share theirs, and few jobs run at a time."""


class Filling(TypedDict):
    """One proposal: its probability, its token, and the text with the token in the mask's place."""

    score: float
    token: int
    token_str: str
    sequence: str


class FillMask(EncoderTask[FillMaskParameters, list[Filling] | list[list[Filling]]]):
    """The best fillings of a text's mask, most probable first; a list of these for each mask, if it has several."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """
        Raises:
            UnsupportedTask: the tokenizer has no mask token.
        """
        super().__init__(model, tokenizer)
        if tokenizer.mask_token_id is None:
            raise UnsupportedTask(f"{model.name_or_path} has no mask token; choose a model trained to fill masks.")
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._target_ids = lru_cache(maxsize=REMEMBERED_TARGETS)(self._find_target_ids)

    def encode_named(
        self, texts: Sequence[str], names: Sequence[str], parameters: FillMaskParameters
    ) -> list[EncodedText]:
        """Raises InvalidRequest also for `targets` of which no token can be made."""
        if parameters.targets is not None:
            self._target_ids(parameters.targets)
        return super().encode_named(texts, names, parameters)

    def check(self, row: EncodedText, name: str) -> None:
        if self.tokenizer.mask_token_id not in row.input_ids:
            raise InvalidRequest(
                f"{name} has no mask token; write {self.tokenizer.mask_token} where a word is to be found.",
                param=name,
            )

    def run_rows(self, rows: Sequence[EncodedText]) -> list[Tensor]:
        """For each row the logits of its masks, [masks, vocabulary].

        The head runs on the masks alone: over all tokens, its output would take tokens · vocabulary floats (2 GB for
        16,384 tokens of BERT). The body's output is cut by a hook, because heads differ in name and in layers and all
        read the body's `last_hidden_state`.
        """
        logits: list[Tensor] = []
        for part in self._parts(rows):
            logits.extend(self._run_part(part))
        return logits

    def _run_part(self, rows: Sequence[EncodedText]) -> Sequence[Tensor]:
        places = [self._masks(row) for row in rows]
        numbers = torch.tensor([number for number, masks in enumerate(places) for _ in masks])
        columns = torch.tensor([place for masks in places for place in masks])

        def keep_masked_places(_body: Any, _arguments: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[numbers, columns].unsqueeze(1)
            return output

        hook = self.model.base_model.register_forward_hook(keep_masked_places)
        try:
            with torch.inference_mode():
                logits: Tensor = self.model(**self.pad(rows)).logits
        finally:
            hook.remove()
        by_row: tuple[Tensor, ...] = logits.squeeze(1).float().cpu().split([len(masks) for masks in places])
        return by_row

    def row_result(
        self, output: Tensor, row: EncodedText, parameters: FillMaskParameters
    ) -> list[Filling] | list[list[Filling]]:
        probabilities = output.softmax(dim=-1)
        candidates = None
        if parameters.targets is not None:
            candidates = torch.tensor(self._target_ids(parameters.targets))
            probabilities = probabilities[:, candidates]
        scores, tokens = probabilities.topk(min(parameters.top_k, probabilities.shape[-1]))
        if candidates is not None:
            tokens = candidates[tokens]
        masks = self._masks(row)
        fillings = [
            self._fillings(row, place, of_mask, tokens_of_mask, alone=len(masks) == 1)
            for place, of_mask, tokens_of_mask in zip(masks, scores.tolist(), tokens.tolist(), strict=True)
        ]
        return fillings[0] if len(masks) == 1 else fillings

    def _fillings(
        self, row: EncodedText, place: int, scores: list[float], tokens: list[int], *, alone: bool
    ) -> list[Filling]:
        """`alone`: the text has no other mask, which would have to be seen in the sequences."""
        fillings = []
        for score, token in zip(scores, tokens, strict=True):
            filled = [*row.input_ids[:place], token, *row.input_ids[place + 1 :]]
            filled = [found for found in filled if found != self.tokenizer.pad_token_id]
            fillings.append(
                Filling(
                    score=score,
                    token=token,
                    token_str=self.tokenizer.decode([token]),
                    sequence=self.tokenizer.decode(filled, skip_special_tokens=alone),
                )
            )
        return fillings

    def _masks(self, row: EncodedText) -> list[int]:
        return [place for place, token in enumerate(row.input_ids) if token == self.tokenizer.mask_token_id]

    def _parts(self, rows: Sequence[EncodedText]) -> Iterator[list[EncodedText]]:
        """The rows, in order, in parts of up to HEAD_MASKS masks."""
        part: list[EncodedText] = []
        held = 0
        for row in rows:
            masks = len(self._masks(row))
            if part and held + masks > HEAD_MASKS:
                yield part
                part, held = [], 0
            part.append(row)
            held += masks
        yield part

    def _find_target_ids(self, targets: tuple[str, ...]) -> list[int]:
        """Distinct token ids; of a word that is no token, its first one, as in the library."""
        found = []
        for target in targets:
            if target in self._vocabulary:
                found.append(self._vocabulary[target])
            else:
                found.extend(self.tokenizer(target, add_special_tokens=False)["input_ids"][:1])
        if not found:
            raise InvalidRequest(
                "`parameters.targets` has no word of which the model knows a token", param="parameters.targets"
            )
        return sorted(set(found))
