"""The engine as a tutorial: one resident model serves many prompts at once, each with its own adapter.

Everything here is real: a tiny Llama with random weights, a tokenizer trained on one sentence, adapters written by
PEFT. Random weights answer nonsense, but always the same nonsense.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from tandem.errors import Cancelled, PromptTooLong
from tandem.specs import GenerationParameters
from worker.engine.adapters.weights import read_adapter
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence

SECONDS = 60
"""How long a test waits for what takes milliseconds: long enough for a busy machine."""


def tiny_llama() -> PreTrainedModel:
    """The same two layers of random weights each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        eos_token_id=None,
    )
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes are its letters, so that it can write and read any text."""
    bytes_to_text = Tokenizer(models.BPE())
    bytes_to_text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_to_text.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bytes_to_text.train_from_iterator(["one resident model serves every prompt with its own adapter"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bytes_to_text)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The resident model: the engine takes it over."""
    return tiny_llama()


@pytest.fixture(scope="module")
def loop(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Iterator[EngineLoop]:
    """An engine for three sequences at a time, in its thread."""
    engine = Engine(
        model, tokenizer, sequence_slots=3, slot_tokens=64, step_tokens=16, adapter_slots=2, adapter_rank=8
    )
    loop = EngineLoop(engine)
    loop.start()
    yield loop
    loop.stop()


def test_a_prompt_goes_in_and_a_future_brings_the_text(loop: EngineLoop, tokenizer: PreTrainedTokenizerFast) -> None:
    """A sequence is a tokenized prompt with its parameters; the result tells the text and why it ended."""
    sequence = Sequence(tokenizer.encode("one model"), GenerationParameters(max_new_tokens=8))
    loop.submit(sequence)
    result = sequence.future.result(SECONDS)

    assert result.text == tokenizer.decode(result.token_ids)
    assert result.finish_reason == "length"
    assert (result.prompt_tokens, result.completion_tokens) == (len(sequence.prompt_tokens), 8)


def test_a_crowd_gets_the_answers_that_each_would_get_alone(
    loop: EngineLoop, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Ten prompts share three slots in one batch, and each is answered as by transformers' own generate()."""
    alone = tiny_llama()
    prompts = [tokenizer.encode("every prompt with its own adapter"[: 3 * n]) for n in range(1, 11)]
    crowd = [Sequence(prompt, GenerationParameters(max_new_tokens=10)) for prompt in prompts]
    for sequence in crowd:
        loop.submit(sequence)

    for prompt, sequence in zip(prompts, crowd, strict=True):
        ids = torch.tensor([prompt])
        expected = alone.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
        assert list(sequence.future.result(SECONDS).token_ids) == expected[0, len(prompt) :].tolist()


# peft asks transformers for an attribute under the name that transformers 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_each_sequence_may_bring_its_own_adapter(
    loop: EngineLoop, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A fine-tuned adapter, the base and another adapter answer the same prompt in the same batch."""
    adapters = []
    for name, rank in (("first", 2), ("second", 8)):
        trained = get_peft_model(tiny_llama(), LoraConfig(r=rank, target_modules=["q_proj", "down_proj"]))
        for weight_name, weight in trained.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=0.5)
        trained.save_pretrained(tmp_path / name)
        adapters.append(read_adapter(name, tmp_path / name, model))
    prompt = tokenizer.encode("one resident model")

    batch = [
        Sequence(prompt, GenerationParameters(max_new_tokens=12), adapter=adapter)
        for adapter in (adapters[0], None, adapters[1])
    ]
    for sequence in batch:
        loop.submit(sequence)

    assert len({sequence.future.result(SECONDS).token_ids for sequence in batch}) == 3


def test_a_seed_repeats_a_sampled_text(loop: EngineLoop, tokenizer: PreTrainedTokenizerFast) -> None:
    """With a temperature tokens are drawn; the same seed draws the same ones, whoever else is in the batch."""
    prompt = tokenizer.encode("every prompt")
    batch = [
        Sequence(prompt, GenerationParameters(max_new_tokens=12, temperature=1.0, seed=seed)) for seed in (1, 2, 1)
    ]
    for sequence in batch:
        loop.submit(sequence)
    first, other, again = (sequence.future.result(SECONDS).token_ids for sequence in batch)

    assert first == again
    assert first != other


def test_text_streams_while_it_is_generated(loop: EngineLoop, tokenizer: PreTrainedTokenizerFast) -> None:
    """A listener is told each piece as soon as it is decided; joined, the pieces are the text."""
    pieces: list[str] = []
    sequence = Sequence(tokenizer.encode("one"), GenerationParameters(max_new_tokens=30), on_text=pieces.append)
    loop.submit(sequence)
    result = sequence.future.result(SECONDS)

    assert len(pieces) > 1
    assert "".join(pieces) == result.text


def test_a_stop_string_ends_the_text_and_is_not_part_of_it(
    loop: EngineLoop, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Whatever the model would have said after it is not generated."""
    prompt = tokenizer.encode("one resident")
    free = Sequence(prompt, GenerationParameters(max_new_tokens=30))
    loop.submit(free)
    text = free.future.result(SECONDS).text
    stop = text[len(text) // 2 :][:2]
    stopped = Sequence(prompt, GenerationParameters(max_new_tokens=30, stop=(stop,)))
    loop.submit(stopped)
    result = stopped.future.result(SECONDS)

    assert result.text == text[: text.index(stop)]
    assert result.finish_reason == "stop"
    assert result.completion_tokens < 30


def test_a_cancelled_sequence_stops_at_the_next_step(loop: EngineLoop, tokenizer: PreTrainedTokenizerFast) -> None:
    """Cancelling is a request from any thread; the future then raises, and the slot serves somebody else."""
    sequence = Sequence(tokenizer.encode("one"), GenerationParameters(max_new_tokens=60))
    sequence.on_text = lambda _: sequence.cancel()
    loop.submit(sequence)

    with pytest.raises(Cancelled):
        sequence.future.result(SECONDS)
    assert len(sequence.token_ids) < 60


def test_a_prompt_that_does_not_fit_is_refused_at_once(loop: EngineLoop) -> None:
    """The error names the prompt's length, what was asked for and the limit; nothing is queued."""
    with pytest.raises(PromptTooLong, match=r"64 tokens and asks for 20 .* maximum context length is 64,"):
        loop.submit(Sequence([1] * 64, GenerationParameters(max_new_tokens=20)))
