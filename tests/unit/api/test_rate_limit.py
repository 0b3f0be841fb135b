"""How a span of time is written in OpenAI's headers."""

import pytest

from api.rate_limit import duration


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (59.4, "59s"), (59.6, "1m0s"), (360, "6m0s"), (3723, "1h2m3s")],
)
def test_a_duration_is_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written
