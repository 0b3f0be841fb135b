"""What `tandem up` prints when everything runs: addresses, keys, and the first lines to try."""

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tandem.catalogue import CatalogueEntry
from tandem.home import Home, RunningService

FRAME_COLUMNS = 6
"""Of a panel: two borders with their padding."""


def welcome(console: Console, service: RunningService, models: Sequence[CatalogueEntry], home: Home) -> None:
    """Print the summary: in a frame where it fits the terminal, as plain lines elsewhere.

    No line is ever broken by us: an address or a key stays whole when it is copied.
    """
    rows = _rows(service, models, home)
    labels = max(len(label) for label, _ in rows)
    width = labels + 2 + max(len(value) for _, value in rows) + FRAME_COLUMNS
    if console.is_terminal and console.width >= width:
        table = Table.grid(padding=(0, 2))
        for label, value in rows:
            table.add_row(Text(label, style="bold"), Text(value))
        console.print(Panel(table, title="Tandem is running", border_style="green", expand=False, padding=(0, 2)))
    else:
        console.print(Text("Tandem is running"))
        for label, value in rows:
            console.print(Text(f"  {label:<{labels}}  {value}"), soft_wrap=True)
    # Outside the frame, so that the lines can be copied as they are.
    for title, lines in _first_steps(service, models):
        console.print(Text(f"\n{title}", style="bold"))
        console.print(Text(lines), soft_wrap=True)
    console.print(Text("\nCtrl-C stops everything.", style="bold"))


def _rows(service: RunningService, models: Sequence[CatalogueEntry], home: Home) -> list[tuple[str, str]]:
    rows = [
        ("API", f"{service.api_url}/v1"),
        ("API key", service.api_key),
        ("Docs", f"{service.api_url}/docs"),
    ]
    if service.flower_url is not None:
        rows += [("Flower", service.flower_url), ("", f"user tandem, password {service.flower_password}")]
    for number, model in enumerate(models):
        rows.append(("" if number else "Models", f"{model.name} ({', '.join(model.tasks)})"))
    return [*rows, ("Logs", str(home.logs)), ("Data", str(home.path))]


def _first_steps(service: RunningService, models: Sequence[CatalogueEntry]) -> list[tuple[str, str]]:
    chat = next((model.name for model in models if "text-generation" in model.tasks), None)
    if chat is None:
        asked = f"curl {service.api_url}/v1/models -H 'Authorization: Bearer {service.api_key}'"
        return [("Try it with curl:", asked)]
    curl = f"""\
curl {service.api_url}/v1/chat/completions \\
  -H 'Authorization: Bearer {service.api_key}' \\
  -H 'Content-Type: application/json' \\
  -d '{{"model": "{chat}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'"""
    python = f"""\
from tandem import Tandem
client = Tandem("{service.api_url}", "{service.api_key}")
print(client.run("text-generation", "The capital of France is", model="{chat}"))"""
    return [("Try it with curl:", curl), ("Try it with Python:", python)]
