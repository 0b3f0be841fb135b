"""Writes texts under a constraint as the engine does, with logits that know nothing of the format."""

import torch
from transformers import PreTrainedTokenizerFast

from worker.engine.text.detokenizer import Detokenizer
from worker.engine.tokens.constraints import GrammarConstraint

MAX_TOKENS = 2000
"""For a text that does not end: the formats of these tests are far shorter."""
PROMPT = "Answer: "
END_BONUS = 2.0
"""On the end token's logit, so that a text which may end soon does."""


def write(
    constraint: GrammarConstraint,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    padding: int = 0,
    bonus: dict[int, float] | None = None,
) -> str:
    """The text of the largest random logits that are allowed, up to an end token or the constraint's end.

    The logits have `padding` more tokens than the tokenizer; `bonus` is added to those of some tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    end = tokenizer.eos_token_id
    detokenizer = Detokenizer(tokenizer, tokenizer.encode(PROMPT, add_special_tokens=False))
    text = ""
    for _ in range(MAX_TOKENS):
        if constraint.is_finished:
            return text + detokenizer.flush()
        logits = torch.randn(len(tokenizer) + padding, generator=generator)
        for token, value in ({end: END_BONUS} | (bonus or {})).items():
            logits[token] += value
        constraint.mask(logits)
        token = int(logits.argmax())
        constraint.accept(token)
        if token == end:
            return text + detokenizer.flush()
        text += detokenizer.push(token)
    raise AssertionError(f"the text does not end: {text[-200:]!r}")


def takes(constraint: GrammarConstraint, tokens: list[int], vocabulary: int) -> bool:
    """Whether the constraint allows these tokens, one after another."""
    for token in tokens:
        logits = torch.zeros(vocabulary)
        constraint.mask(logits)
        if logits[token] != 0.0:
            return False
        constraint.accept(token)
    return True
