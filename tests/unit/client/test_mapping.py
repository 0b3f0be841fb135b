"""Many inputs with a bounded number in flight: decided without a service."""

from collections.abc import Iterator

import pytest

from tandem import AuthenticationFailed, InvalidRequest, OutOfMemory, TandemError
from tandem.client.mapping import OnError, in_order


class Run:
    """Starts and finishes numbers, and notes how many were in flight."""

    def __init__(
        self, failing: dict[int, TandemError] | None = None, *, refused: dict[int, TandemError] | None = None
    ):
        self.failing, self.refused = failing or {}, refused or {}
        self.in_flight: list[int] = []
        self.most = 0
        self.abandoned: list[int] = []

    def start(self, number: int) -> int:
        if number in self.refused:
            raise self.refused[number]
        self.in_flight.append(number)
        self.most = max(self.most, len(self.in_flight))
        return number

    def finish(self, number: int) -> int:
        self.in_flight.remove(number)
        if number in self.failing:
            raise self.failing[number]
        return number * 10

    def over(
        self, inputs: Iterator[int] | range, window: int, on_error: OnError = "raise"
    ) -> Iterator[int | TandemError]:
        return in_order(
            inputs,
            start=self.start,
            finish=self.finish,
            abandon=self.abandoned.append,
            window=window,
            on_error=on_error,
        )


@pytest.mark.parametrize("window", [1, 3, 10, 99])
def test_results_come_in_order_with_at_most_the_window_in_flight(window: int) -> None:
    run = Run()
    assert list(run.over(range(10), window)) == [number * 10 for number in range(10)]
    assert run.most == min(window, 10)
    assert run.abandoned == []


def test_inputs_are_taken_only_as_room_becomes_free() -> None:
    """So they may be endless. A caller that stops leaves nothing running."""
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    run = Run()
    results = run.over(endless(), 4)
    assert [next(results), next(results)] == [10, 20]
    assert taken == 6
    results.close()
    assert run.abandoned == run.in_flight == [3, 4, 5]


def test_an_error_is_raised_and_what_is_in_flight_abandoned() -> None:
    run = Run({2: OutOfMemory()})
    with pytest.raises(OutOfMemory):
        list(run.over(range(10), 3))
    assert run.abandoned == [3, 4]


def test_errors_can_stay_in_their_rows_be_they_of_the_start_or_the_end() -> None:
    late, early = OutOfMemory(), InvalidRequest()
    run = Run({1: late}, refused={3: early})
    assert list(run.over(range(5), 2, "return")) == [0, late, 20, early, 40]


def test_an_error_that_every_row_would_meet_ends_the_run() -> None:
    run = Run(refused={3: AuthenticationFailed()})
    with pytest.raises(AuthenticationFailed):
        list(run.over(range(10), 2, "return"))
    assert run.abandoned == [2]
