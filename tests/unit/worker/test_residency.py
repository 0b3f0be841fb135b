"""Models are loaded once, shared, and evicted least recently used first; never while in use. No torch here."""

import threading
from dataclasses import dataclass

import pytest

from tandem.errors import OutOfMemory
from worker.residency import Key, MemoryBudget, ResidentModels

BUDGET = 100


@dataclass(eq=False)
class FakeModel:
    name: str
    bytes: int
    closed: bool = False

    def close(self) -> None:
        self.closed = True


class Shelf:
    """A loader that remembers what it loaded. A model's size is the number in its name."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.gate: threading.Event | None = None
        self.fault: Exception | None = None
        self.models = ResidentModels[FakeModel](
            BUDGET, measure=lambda key: int(key[0].split("-")[1]), load=self._load
        )

    def _load(self, key: Key) -> FakeModel:
        if self.gate is not None:
            self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.loaded.append(key[0])
        return FakeModel(key[0], int(key[0].split("-")[1]))


def test_a_model_is_loaded_once_for_all_that_ask_at_once() -> None:
    shelf = Shelf()
    shelf.gate = threading.Event()
    got: list[FakeModel] = []

    def use() -> None:
        with shelf.models.use(("a-10", "t")) as model:
            got.append(model)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    shelf.gate.set()
    for thread in threads:
        thread.join()
    assert shelf.loaded == ["a-10"]
    assert len(got) == 6
    assert len({id(model) for model in got}) == 1


def test_the_least_recently_used_model_leaves_first() -> None:
    shelf = Shelf()
    for name in ("a-40", "b-40", "a-40", "c-40"):
        with shelf.models.use((name, "t")):
            pass
    assert shelf.models.names() == ("a-40", "c-40")


def test_an_evicted_model_is_closed_and_loaded_anew_when_asked_for() -> None:
    shelf = Shelf()
    with shelf.models.use(("a-60", "t")) as first:
        pass
    with shelf.models.use(("b-60", "t")):
        pass
    assert first.closed
    with shelf.models.use(("a-60", "t")) as again:
        assert not again.closed
    assert shelf.loaded == ["a-60", "b-60", "a-60"]


def test_what_a_model_has_come_to_take_counts_not_what_it_was_measured_to_need() -> None:
    """Packed copies may turn out smaller than was reckoned, and adapters come later."""
    shelf = Shelf()
    with shelf.models.use(("a-60", "t")) as model:
        model.bytes = 40
    with shelf.models.use(("b-60", "t")) as other:
        other.bytes = 70
    assert shelf.models.names() == ("a-60", "b-60"), "40 + 60 fit"
    with shelf.models.use(("c-10", "t")):
        pass
    assert shelf.models.names() == ("b-60", "c-10"), "40 + 70 + 10 do not"


@pytest.mark.parametrize(
    ("weights", "kv"),
    [pytest.param(20, 30, id="all that one engine may"), pytest.param(90, 10, id="what the weights leave"), (120, 0)],
)
def test_keys_and_values_have_room_beside_the_weights(weights: int, kv: int) -> None:
    assert MemoryBudget(residents=100, kv=30).kv_beside(weights) == kv


def test_a_model_in_use_is_never_evicted_and_the_other_waits() -> None:
    shelf = Shelf()
    entered = threading.Event()

    def other() -> None:
        with shelf.models.use(("b-60", "t")):
            entered.set()

    thread = threading.Thread(target=other)
    with shelf.models.use(("a-60", "t")) as model:
        thread.start()
        assert not entered.wait(0.1)
        assert not model.closed
    assert entered.wait(30)
    thread.join()
    assert model.closed


def test_a_model_beyond_the_whole_budget_is_refused_with_the_limit() -> None:
    limit = r"'a-101' needs 101 bytes, above the worker's limit of 100"
    with pytest.raises(OutOfMemory, match=limit), Shelf().models.use(("a-101", "t")):
        pass


def test_a_failed_load_is_its_users_error_and_the_next_one_tries_again() -> None:
    shelf = Shelf()
    shelf.fault = OSError("torn file")
    with pytest.raises(OSError, match="torn file"), shelf.models.use(("a-100", "t")):
        pass
    shelf.fault = None
    with shelf.models.use(("b-100", "t")) as model:
        assert model.name == "b-100", "the failed load left its room"


def test_closing_closes_what_is_there() -> None:
    shelf = Shelf()
    with shelf.models.use(("a-10", "t")) as model:
        pass
    shelf.models.close()
    assert model.closed
    assert shelf.models.names() == ()
