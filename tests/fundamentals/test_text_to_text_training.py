"""Training an encoder-decoder, from the outside: a T5 learns what to write for a text, while it writes for others."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from tandem.specs import LoraMethod
from tests.tiny_models import build
from tests.unit.training.tiny_encoder_decoders import WRITTEN, learn, model_of, tokenizer_of, written_rows
from worker.training.turns import Turns

# PEFT 0.21 reads a property that transformers 5.23 has renamed, when it loads an adapter or wraps a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(autouse=True)
def _one_compute_thread() -> Iterator[None]:
    """The batches are too small for two, which would spin while they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("tiny-t5", tmp_path_factory.mktemp("tiny-t5"))


def write(model: Any, base: Path, text: str) -> str:
    tokenizer = tokenizer_of(base)
    (ids,) = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=12, num_beams=1)
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def test_what_to_write_for_a_text_is_learned(base: Path, tmp_path: Path) -> None:
    """By heart, from six rows. PEFT reads the folder, and its `generate` writes the targets, as the base does not."""
    method = LoraMethod(r=16, target_modules=("q", "k", "v", "o", "wi", "wo"))
    by_heart: dict[str, Any] = {"max_steps": 150, "batch_size": 6, "lr_scheduler_type": "constant"}
    outcome = learn(model_of(base), base, tmp_path, validation_rows=written_rows(), method=method, **by_heart)
    assert outcome.validation_loss_after is not None
    assert outcome.validation_loss_after < 0.2
    learned = PeftModel.from_pretrained(model_of(base), str(tmp_path)).eval()
    assert {text: write(learned, base, text) for text in WRITTEN} == WRITTEN
    assert all(write(model_of(base), base, text) != target for text, target in WRITTEN.items())


def test_who_is_served_meanwhile_sees_none_of_it_and_changes_nothing(base: Path, tmp_path: Path) -> None:
    """Between the training's turns the resident writes what it always wrote, and the adapter is, bit for bit, that of
    a training that was alone."""
    resident, turns = model_of(base), Turns(quantum_seconds=0.02)
    text = next(iter(WRITTEN))
    always = write(resident, base, text)
    ended, served = threading.Event(), []

    def serve(resident: PreTrainedModel) -> None:
        while not ended.is_set():
            with turns.serving(), torch.no_grad():
                served.append(write(resident, base, text))

    server = threading.Thread(target=serve, args=(resident,))
    server.start()
    try:
        learn(resident, base, tmp_path / "together", turns=turns, max_steps=3)
    finally:
        ended.set()
        server.join()
    learn(model_of(base), base, tmp_path / "alone", max_steps=3)
    assert len(served) > 2
    assert set(served) == {always}
    together, alone = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("together", "alone"))
    assert together.keys() == alone.keys()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in together.items())
