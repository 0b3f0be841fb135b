"""When a message is tried again."""

from datetime import UTC, datetime

import pytest

from tandem.webhooks.schedule import (
    JITTER,
    LONGEST_RETRY_AFTER,
    PAUSES,
    TRIES,
    pause_after,
    retry_after_seconds,
)

NOW = datetime(2026, 11, 6, 8, 49, 37, tzinfo=UTC)
MIDDLE = 0.5
"""The chance that leaves a pause as it is."""


def test_the_pauses_are_those_of_standard_webhooks() -> None:
    pauses = [pause_after(tries, retry_after=None, chance=MIDDLE) for tries in range(1, TRIES + 1)]
    assert pauses == [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400, None]


@pytest.mark.parametrize("tries", range(1, TRIES))
def test_chance_makes_a_pause_a_little_shorter_or_longer(tries: int) -> None:
    shortest, longest = (pause_after(tries, retry_after=None, chance=chance) for chance in (0.0, 1.0))
    assert shortest == pytest.approx(PAUSES[tries - 1] * (1 - JITTER))
    assert longest == pytest.approx(PAUSES[tries - 1] * (1 + JITTER))


def test_the_receivers_wish_counts_where_it_is_longer() -> None:
    assert pause_after(1, retry_after=60.0, chance=MIDDLE) == 60.0
    assert pause_after(2, retry_after=60.0, chance=MIDDLE) == 300.0


def test_the_receivers_wish_has_a_limit() -> None:
    assert pause_after(1, retry_after=1e12, chance=MIDDLE) == LONGEST_RETRY_AFTER


def test_no_wish_adds_a_try_after_the_last() -> None:
    assert pause_after(TRIES, retry_after=60.0, chance=MIDDLE) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Fri, 06 Nov 2026 08:50:37 GMT", 60.0),
        ("Fri, 06 Nov 2026 08:50:37 -0000", 60.0),
        ("Fri, 06 Nov 2026 07:00:00 GMT", 0.0),
    ],
)
def test_both_forms_of_retry_after_are_read(header: str, seconds: float) -> None:
    assert retry_after_seconds(header, NOW) == seconds


@pytest.mark.parametrize(
    "header", [None, "", "-5", "1.5", "nan", "inf", "soon", "٣", "Fri, 99 Nov 2026 08:50:37 GMT"]
)
def test_an_unreadable_retry_after_is_no_wish(header: str | None) -> None:
    assert retry_after_seconds(header, NOW) is None
