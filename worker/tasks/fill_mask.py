"""fill-mask: the most probable tokens for the one mask token of a text."""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from tandem.errors import InvalidRequest, UnsupportedTask
from tandem.specs import FillMaskParameters
from worker.tasks.encoder_task import EncodedText, EncoderTask


class Filling(TypedDict):
    """One proposal: its probability, its token, and the text with the token in the mask's place."""

    score: float
    token: int
    token_str: str
    sequence: str


class FillMask(EncoderTask[FillMaskParameters, list[Filling]]):
    """The best fillings of one mask, most probable first."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """
        Raises:
            UnsupportedTask: the tokenizer has no mask token.
        """
        super().__init__(model, tokenizer)
        if tokenizer.mask_token_id is None:
            raise UnsupportedTask(f"{model.name_or_path} has no mask token; choose a model trained to fill masks.")

    def check(self, row: EncodedText, name: str) -> None:
        masks = row.input_ids.count(self.tokenizer.mask_token_id)
        if masks != 1:
            raise InvalidRequest(
                f"{name} has {masks} mask tokens; write {self.tokenizer.mask_token} exactly once, where the word "
                "is to be found.",
                param=name,
            )

    def forward(self, rows: Sequence[EncodedText]) -> Tensor:
        """Logits of the mask's place, [rows, vocabulary].

        The head runs on that place alone: over all tokens, its output would take tokens · vocabulary floats (2 GB
        for 16,384 tokens of BERT). The body's output is cut by a hook, because heads differ in name and in layers
        and all read the body's `last_hidden_state`.
        """
        places = torch.tensor([row.input_ids.index(self.tokenizer.mask_token_id) for row in rows])
        numbers = torch.arange(len(rows))

        def keep_masked_places(_body: Any, _arguments: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[numbers, places].unsqueeze(1)
            return output

        hook = self.model.base_model.register_forward_hook(keep_masked_places)
        try:
            with torch.inference_mode():
                logits: Tensor = self.model(**self.pad(rows)).logits
        finally:
            hook.remove()
        return logits.squeeze(1).float().cpu()

    def result(self, output: Tensor, row: EncodedText, parameters: FillMaskParameters) -> list[Filling]:
        scores, tokens = output.softmax(dim=-1).topk(min(parameters.top_k, output.shape[-1]))
        place = row.input_ids.index(self.tokenizer.mask_token_id)
        fillings = []
        for score, token in zip(scores.tolist(), tokens.tolist(), strict=True):
            filled = [*row.input_ids[:place], token, *row.input_ids[place + 1 :]]
            fillings.append(
                Filling(
                    score=score,
                    token=token,
                    token_str=self.tokenizer.decode([token]),
                    sequence=self.tokenizer.decode(filled, skip_special_tokens=True),
                )
            )
        return fillings
