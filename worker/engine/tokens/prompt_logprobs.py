"""How probable the tokens of a prompt were, for sequences that ask for it: by the logits of the rows before them."""

from itertools import groupby

import torch

from worker.engine.scheduling.step_plan import StepPlan
from worker.engine.sequence import Sequence
from worker.engine.tokens.sampler import told_logprobs

TokenAfter = tuple[Sequence, int]
"""A sequence, and a token of its prompt."""


def told_rows(plan: StepPlan) -> list[tuple[int, TokenAfter]]:
    """Rows of a step's forward whose logits say how probable the prompt's next token was, with that token."""
    told: list[tuple[int, TokenAfter]] = []
    row = len(plan.decode)
    for chunk in plan.chunks:
        sequence = chunk.sequence
        if sequence.parameters.prompt_logprobs:
            for position in range(chunk.start, chunk.end):
                # The first token follows nothing, or what its adapter has put before it.
                after = position - sequence.virtual_tokens + 1
                if 0 < after < len(sequence.prompt_tokens):
                    told.append((row + position - chunk.start, (sequence, sequence.prompt_tokens[after])))
        row += chunk.end - chunk.start
    return told


def note_prompt_logprobs(logits: torch.Tensor, told: list[tuple[int, TokenAfter]]) -> None:
    """Add them to their sequences; `logits` is [len(told), vocabulary]."""
    done = 0
    for _, group in groupby((after for _, after in told), key=lambda after: id(after[0])):
        places = list(group)
        sequence = places[0][0]
        rows = logits[done : done + len(places)]
        tokens = [token for _, token in places]
        sequence.prompt_logprobs += told_logprobs(rows, tokens, sequence.parameters.top_logprobs)
        done += len(places)
