"""What fails in a batcher fails alone: a text, a batch, its thread, its settings."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tandem.errors import (
    Cancelled,
    ConfigurationError,
    OutOfMemory,
    PromptTooLong,
    TandemError,
)
from tandem.specs import EmbeddingParameters
from tests.unit.encoders.batchers import WAIT_SECONDS, Gate, started
from tests.unit.encoders.tiny_models import SENTENCES, tiny_model
from worker.encoders import EncoderBatcher
from worker.tasks.encoder_task import EncodedText
from worker.tasks.feature_extraction import FeatureExtraction


def break_forward(batcher: EncoderBatcher, breaks: Callable[[list[EncodedText]], None]) -> None:
    """Let `breaks` raise before the batcher's own forward, as a faulty device would."""
    forward = batcher.task.forward

    def wrapped(rows: Any, pause: Any) -> Any:
        breaks(rows)
        return forward(rows, pause)

    batcher.task.forward = wrapped  # type: ignore[method-assign]  # a fault injected into one object


def test_a_bad_text_fails_its_own_job_alone() -> None:
    gate = Gate()
    with started(serving_turn=gate) as batcher:
        good = batcher.submit(["yes"], EmbeddingParameters())
        with pytest.raises(PromptTooLong, match=r"inputs\[1\]"):
            batcher.run(["yes", "night " * 100], EmbeddingParameters())
        gate.opened.set()
        assert len(good.result(WAIT_SECONDS)) == 1


def test_a_text_that_the_model_fails_on_fails_its_own_job_alone() -> None:
    """The shared batch is run again in halves until the text at fault is alone."""
    gate = Gate()
    with started(serving_turn=gate) as batcher:
        poison = batcher.task.encode(["a dog barked"], EmbeddingParameters())[0][0].input_ids

        def breaks(rows: list[EncodedText]) -> None:
            if any(row.input_ids == poison for row in rows):
                raise RuntimeError("device fault")

        break_forward(batcher, breaks)
        first = batcher.submit(["yes"], EmbeddingParameters())
        assert gate.reached.wait(WAIT_SECONDS)
        good = [batcher.submit([text], EmbeddingParameters()) for text in SENTENCES[:5]]
        bad = batcher.submit(["yes", "a dog barked", "a book"], EmbeddingParameters())
        gate.opened.set()
        assert [len(future.result(WAIT_SECONDS)) for future in [first, *good]] == [1] * 6
        with pytest.raises(RuntimeError, match="device fault"):
            bad.result(WAIT_SECONDS)


def test_a_batch_too_large_for_the_memory_runs_in_parts() -> None:
    with started(max_wait_seconds=0.2) as batcher:

        def breaks(rows: list[EncodedText]) -> None:
            if len(rows) > 2:
                raise torch.OutOfMemoryError("out of memory")

        break_forward(batcher, breaks)
        assert len(batcher.run(SENTENCES, EmbeddingParameters())) == len(SENTENCES)


def test_a_text_too_large_for_the_memory_even_alone_is_named() -> None:
    with started() as batcher:

        def breaks(rows: list[EncodedText]) -> None:
            if max(len(row) for row in rows) > 10:
                raise torch.OutOfMemoryError("out of memory")

        break_forward(batcher, breaks)
        with pytest.raises(OutOfMemory, match=r"inputs\[1\] \(11 tokens\)") as refusal:
            batcher.run(["yes", "yes yes yes yes yes yes yes yes yes"], EmbeddingParameters())
        assert refusal.value.retryable


def test_should_stop_is_asked_before_each_part_of_a_batch_that_failed() -> None:
    """A batch that does not fit the memory is run in halves: a forward each, with a question before each."""
    stop = threading.Event()

    def should_stop() -> None:
        if stop.is_set():
            raise Cancelled

    with started() as batcher:

        def breaks(rows: list[EncodedText]) -> None:
            stop.set()
            raise torch.OutOfMemoryError("out of memory")

        break_forward(batcher, breaks)
        with pytest.raises(Cancelled):
            batcher.run(SENTENCES, EmbeddingParameters(), should_stop=should_stop)
        assert batcher.counts.batches == 1


def test_a_failed_forward_is_progress_too() -> None:
    with started() as batcher:

        def breaks(rows: list[EncodedText]) -> None:
            raise RuntimeError("device fault")

        break_forward(batcher, breaks)
        with pytest.raises(RuntimeError, match="device fault"):
            batcher.run(["yes"], EmbeddingParameters())
        assert batcher.progress() > 0
        assert not batcher.is_busy()


def test_a_batcher_whose_thread_dies_says_so_to_all() -> None:
    """Nobody may wait for a thread that is no more."""
    gate = Gate()
    with started(serving_turn=gate) as batcher:
        job = batcher.submit(["yes"], EmbeddingParameters())
        assert gate.reached.wait(WAIT_SECONDS)

        def dies(_rows: list[EncodedText]) -> None:
            raise SystemExit("killed")

        break_forward(batcher, dies)
        gate.opened.set()
        with pytest.raises(TandemError, match="died of SystemExit"):
            job.result(WAIT_SECONDS)
        with pytest.raises(TandemError, match="restart the worker"):
            batcher.submit(["yes"], EmbeddingParameters())


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"budget": 0}, ConfigurationError, "budget"),
        ({"max_wait_seconds": -1.0}, ConfigurationError, "max_wait_seconds"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    changed: dict[str, Any], error: type[TandemError], message: str
) -> None:
    model, tokenizer = tiny_model("bert", "feature-extraction")
    settings: dict[str, Any] = {"budget": 100, "max_wait_seconds": 0.0} | changed
    with pytest.raises(error, match=message):
        EncoderBatcher(FeatureExtraction(model, tokenizer), **settings)
