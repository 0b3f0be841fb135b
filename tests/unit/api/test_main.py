"""The start of `python -m api`: a setting that cannot be used is named, and ends it with status 2."""

import socket
from pathlib import Path

import pytest

from api.__main__ import listen, main
from tandem.errors import ConfigurationError


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TANDEM_API_KEY", None, "TANDEM_API_KEY"),
        ("TANDEM_PORT", "eighty", "TANDEM_PORT"),
        ("TANDEM_BODY_BYTES", "1", "1024"),
        ("TANDEM_CATALOGUE", "/nowhere/models.toml", "/nowhere/models.toml"),
        ("TANDEM_API_KEYS_FILE", "/nowhere/keys.toml", "/nowhere/keys.toml"),
        ("TANDEM_HOST", "999.0.0.1", "999.0.0.1"),
    ],
)
def test_a_setting_that_cannot_be_used_ends_the_start(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    value: str | None,
    said: str,
) -> None:
    monkeypatch.setenv("TANDEM_API_KEY", "key")
    monkeypatch.setenv("TANDEM_PORT", "0")
    monkeypatch.setenv("TANDEM_ARTIFACTS_URL", f"file://{tmp_path}")
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    assert main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert said in printed.err


def test_port_zero_takes_a_free_port() -> None:
    with listen("127.0.0.1", 0) as first, listen("127.0.0.1", 0) as second:
        assert first.getsockname()[1] != second.getsockname()[1]


def test_what_is_written_is_sent_at_once() -> None:
    """Symptom: every answer on a kept connection, and every second piece of a stream, came 40 ms late.

    Cause: asyncio switches Nagle's algorithm off only where it has made the socket. Fix: the listener hands it on.
    """
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_another_holds_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 .*--port"):
            listen("127.0.0.1", port)
