"""The engine's thread."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tandem.errors import Draining
from tandem.specs import GenerationParameters
from tests.unit.engine.tiny_models import FAMILIES, build_model, random_prompts
from worker.engine.engine import Engine
from worker.engine.loop import EngineLoop
from worker.engine.sequence import Sequence

SECONDS = 60
"""How long a test waits for what takes milliseconds: long enough for a busy machine."""


@pytest.fixture
def engine(crowd) -> Engine:
    return crowd(build_model(FAMILIES["llama"]())).engine


def sequence(count: int = 5) -> Sequence:
    return Sequence(random_prompts((7,))[0], GenerationParameters(max_new_tokens=count))


def test_a_submitted_sequence_is_generated_by_the_thread(engine: Engine) -> None:
    loop = EngineLoop(engine)
    loop.start()
    first, second = sequence(), sequence()
    loop.submit(first)
    assert first.future.result(SECONDS).completion_tokens == 5
    loop.submit(second)  # the thread has gone to sleep, or is about to: it must wake
    assert second.future.result(SECONDS) == first.future.result()
    loop.stop()

    assert loop.progress() == 10


def test_every_step_runs_inside_a_serving_turn(engine: Engine) -> None:
    turns: list[str] = []

    @contextmanager
    def serving_turn() -> Iterator[None]:
        turns.append(threading.current_thread().name)
        yield

    loop = EngineLoop(engine, serving_turn=serving_turn)
    loop.start()
    one = sequence()
    loop.submit(one)
    one.future.result(SECONDS)
    loop.stop()

    assert turns == ["engine"] * 5


def test_a_loop_is_busy_while_it_has_work_and_each_step_is_progress(engine: Engine) -> None:
    """Both are read while the engine's thread stands still in a step, as the stall watch reads them."""
    reached, go_on = threading.Event(), threading.Event()

    def pause(_: str) -> None:
        reached.set()
        assert go_on.wait(SECONDS)

    loop = EngineLoop(engine)
    loop.start()
    assert (loop.is_busy(), loop.progress()) == (False, 0)
    one = Sequence(random_prompts((7,))[0], GenerationParameters(max_new_tokens=20), on_text=pause)
    loop.submit(one)
    assert reached.wait(SECONDS)
    before = loop.progress()
    assert loop.is_busy()
    go_on.set()
    one.future.result(SECONDS)
    loop.stop()

    assert 0 < before < loop.progress() == 20
    assert not loop.is_busy()


def test_stopping_fails_what_is_left(engine: Engine) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def pause(_: str) -> None:
        reached.set()
        go_on.wait(SECONDS)

    loop = EngineLoop(engine)
    loop.start()
    running = Sequence(random_prompts((7,))[0], GenerationParameters(max_new_tokens=200), on_text=pause)
    waiting = [sequence() for _ in range(6)]
    for one in (running, *waiting):
        loop.submit(one)
    assert reached.wait(SECONDS)
    stopper = threading.Thread(target=loop.stop)
    stopper.start()
    go_on.set()
    stopper.join(SECONDS)

    with pytest.raises(Draining):
        running.future.result(SECONDS)
    assert all(one.future.done() for one in waiting)
    with pytest.raises(Draining):
        loop.submit(sequence())


def test_a_loop_that_was_never_started_can_be_stopped(engine: Engine) -> None:
    loop = EngineLoop(engine)
    one = sequence()
    loop.submit(one)
    loop.stop()

    with pytest.raises(Draining):
        one.future.result(0)


def test_a_defect_outside_the_forward_fails_the_sequences_and_not_the_thread(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    @contextmanager
    def serving_turn() -> Iterator[None]:
        if broken:
            raise LookupError("no turn")
        yield

    loop = EngineLoop(engine, serving_turn=serving_turn)
    loop.start()
    failed, fine = sequence(), sequence()
    loop.submit(failed)
    with pytest.raises(LookupError, match="no turn"):
        failed.future.result(SECONDS)
    broken = False
    loop.submit(fine)
    assert fine.future.result(SECONDS).completion_tokens == 5
    loop.stop()

    assert "the engine goes on" in caplog.text
