"""How transformers itself generates many requests: one at a time, in static batches, in its continuous batch."""

import time
from collections.abc import Sequence as Many
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from bench.decoder import Request, token_ids
from bench.rounds import Work

BATCH = 16
STEP_TOKENS = 512
"""Rows of one forward of the continuous batch: what Tandem's engine has by default, and more than it needs here."""
REQUESTS_AT_ONCE = 32
"""Of the continuous batch: as many as Tandem's engine runs by default. 8 cost it as much processor time (tried)."""
BLOCKS = 256
"""Of 256 tokens: more than all requests together need."""
WAIT_SECONDS = 120.0
"""For one more result; seconds as a rule."""


class Library:
    """One plain model and its tokenizer. Every way generates exactly the tokens that were asked for."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any) -> None:
        # Any: `generate` comes from a mixin that the class does not declare.
        self._model: Any = model
        self._tokenizer = tokenizer
        tokenizer.padding_side = "left"

    def one_at_a_time(self, requests: Many[Request]) -> Work:
        return self.static_batches(requests, size=1)

    @torch.inference_mode()
    def static_batches(self, requests: Many[Request], *, size: int = BATCH) -> Work:
        """`generate()` on so many at a time, in the order given. A batch runs until its longest answer is done;
        what the others generate beyond their own is not counted."""
        started = time.perf_counter()
        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            inputs = self._tokenizer([request.prompt for request in batch], padding=True, return_tensors="pt")
            longest = max(request.new_tokens for request in batch)
            output = self._model.generate(**inputs, max_new_tokens=longest, do_sample=False)
            check(output.shape[1] - inputs.input_ids.shape[1], longest)
        return Work(wanted_tokens(requests), time.perf_counter() - started)

    def continuous_batching(self, requests: Many[Request]) -> Work:
        """Its manager, told each request's own number of tokens. Setting it up is not timed."""
        greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=self._tokenizer.pad_token_id)
        config = ContinuousBatchingConfig(
            max_batch_tokens=STEP_TOKENS,
            max_requests_per_batch=REQUESTS_AT_ONCE,
            num_blocks=BLOCKS,
            auto_switch_to_flash=False,
        )
        with self._model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=config
        ) as manager:
            started = time.perf_counter()
            left = {
                manager.add_request(
                    token_ids(self._tokenizer, request.prompt), max_new_tokens=request.new_tokens
                ): request
                for request in requests
            }
            while left:
                result = manager.get_result(timeout=WAIT_SECONDS)
                if result is None or result.error is not None:
                    raise RuntimeError(f"continuous batching gave up: {result and result.error}")
                if result.is_finished():
                    check(len(result.generated_tokens), left.pop(result.request_id).new_tokens)
            seconds = time.perf_counter() - started
        return Work(wanted_tokens(requests), seconds)


def wanted_tokens(requests: Many[Request]) -> int:
    return sum(request.new_tokens for request in requests)


def check(generated: int, wanted: int) -> None:
    """No side is fast because it does less."""
    if generated != wanted:
        raise RuntimeError(f"{generated} tokens were generated, and {wanted} were asked for")
