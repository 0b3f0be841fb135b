"""A real byte-level tokenizer, and engines that must be empty at the end of each test."""

from collections.abc import Callable, Iterator

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.one_thread import one_thread  # noqa: F401 - pytest finds it here
from tests.unit.engine.tiny_models import VOCABULARY, Crowd
from worker.engine.engine import Engine, Occupancy

TEXT = [
    "The quick brown fox jumps over the lazy dog. Grüße aus Zürich! 東京は日本の首都です。 🙂🙃",
    "Continuous batching keeps the device busy: whoever is done leaves, whoever waits comes in.",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained in an instant: any bytes are a text to it, so characters break over tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture
def crowd(tokenizer: PreTrainedTokenizerFast) -> Iterator[Callable[..., Crowd]]:
    """Makes engines; at the end each must be empty, with every slot free and no adapter in use."""
    made: list[tuple[Engine, int]] = []

    def make(model: PreTrainedModel, **sizes: int) -> Crowd:
        sizes = {
            "sequence_slots": 4,
            "slot_tokens": 256,
            "step_tokens": 32,
            "adapter_slots": 4,
            "adapter_rank": 8,
            "gpu_kernels": True,
        } | sizes
        engine = Engine(model, tokenizer, **sizes)
        made.append((engine, sizes["sequence_slots"]))
        return Crowd(engine)

    yield make
    for engine, slots in made:
        assert engine.occupancy == Occupancy(0, 0, free_sequence_slots=slots, used_adapters=0)
