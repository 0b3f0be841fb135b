"""The engine's golden rule on a CUDA device: batched equals one at a time."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tandem.specs import GenerationParameters
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence

pytestmark = pytest.mark.gpu

PROMPTS = [[5, 9, 17], [3] * 40, list(range(10, 27)), [200, 100, 50, 25]]
NEW_TOKENS = 24


class Ids:
    """Writes tokens as numbers: this test is about tokens alone."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        return " ".join(map(str, token_ids))


def test_a_crowded_batch_equals_generate_in_float32() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to("cuda")
    alone = [
        model.generate(
            torch.tensor([prompt], device="cuda"),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device="cuda"),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        for prompt in PROMPTS
    ]
    engine = Engine(model, Ids(), sequence_slots=2, slot_tokens=128, step_tokens=16, adapter_slots=1, adapter_rank=8)
    sequences = [Sequence(prompt, GenerationParameters(max_new_tokens=NEW_TOKENS)) for prompt in PROMPTS]
    for sequence in sequences:
        engine.submit(sequence)
    while engine.has_work():
        engine.step()
    assert [list(sequence.future.result().token_ids) for sequence in sequences] == alone
