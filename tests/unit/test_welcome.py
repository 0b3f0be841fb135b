"""What `tandem up` prints can be read, and copied, on every terminal and in none."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from tandem.catalogue import CatalogueEntry
from tandem.cli.welcome import welcome
from tandem.home import Home, RunningService

SERVICE = RunningService(
    supervisor=1,
    api_url="http://127.0.0.1:54321",
    api_key="tandem-0123456789012345678901234567890123456789",
    redis_url="redis://:password@127.0.0.1:6379/0",
    flower_url="http://127.0.0.1:55555",
    flower_password="0123456789012345678901234567890123456789",
    pids={},
)
CHAT = CatalogueEntry(name="small", tasks=("text-generation",), folder=Path("small"))
ENCODER = CatalogueEntry(name="encoder", tasks=("feature-extraction",), folder=Path("encoder"))
HOME = Home(Path("/somewhere/.tandem"))


def printed(*, terminal: bool, width: int, models: tuple[CatalogueEntry, ...] = (CHAT,)) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, color_system=None, width=width, highlight=False)
    welcome(console, SERVICE, models, HOME)
    return output.getvalue()


@pytest.mark.parametrize(("terminal", "width"), [(True, 120), (True, 40), (False, 20)])
def test_every_address_and_key_stands_whole_in_one_line(terminal: bool, width: int) -> None:
    """However narrow the terminal is: it wraps the line itself, and copies it whole."""
    lines = printed(terminal=terminal, width=width).splitlines()
    wanted = (
        "http://127.0.0.1:54321/v1",
        "http://127.0.0.1:54321/docs",
        "http://127.0.0.1:55555",
        f"password {SERVICE.flower_password}",
        f"API key  {SERVICE.api_key}",
        f"  -H 'Authorization: Bearer {SERVICE.api_key}' \\",
        '"model": "small"',
        "/somewhere/.tandem/logs",
    )
    for part in wanted:
        assert any(part in line for line in lines), part


def test_a_wide_terminal_gets_a_frame_and_a_file_none() -> None:
    assert "╭" in printed(terminal=True, width=120)
    assert "╭" not in printed(terminal=True, width=40)
    assert "╭" not in printed(terminal=False, width=120)


def test_the_first_lines_to_try_stand_outside_the_frame() -> None:
    """They are copied as they are."""
    lines = printed(terminal=True, width=120).splitlines()
    assert "curl http://127.0.0.1:54321/v1/chat/completions \\" in lines
    begin = lines.index("from tandem import Tandem")
    python = lines[begin : begin + 3]
    assert f'Tandem("{SERVICE.api_url}", "{SERVICE.api_key}")' in python[1]
    compile("\n".join(python), "the Python lines", "exec")


def test_nobody_is_told_to_chat_with_an_encoder() -> None:
    """The lines use the first model that generates text; without one they list the models."""
    assert '"model": "small"' in printed(terminal=False, width=80, models=(ENCODER, CHAT))
    alone = printed(terminal=False, width=80, models=(ENCODER,))
    assert "chat" not in alone
    assert f"curl {SERVICE.api_url}/v1/models -H 'Authorization: Bearer {SERVICE.api_key}'" in alone
