"""`tandem doctor`: what is wrong with this machine, and what to do about it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tandem.diagnosis import Finding, Status, examine
from tandem.embedded import UpOptions
from tandem.home import DEFAULT_HOME
from tandem.ports import LOOPBACK

COLOURS: dict[Status, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    host: Annotated[str, typer.Option(envvar="TANDEM_HOST", help="As for `tandem up`.")] = LOOPBACK,
    port: Annotated[int, typer.Option(envvar="TANDEM_PORT", min=1, max=65_535, help="As for `tandem up`.")] = 8000,
    flower_port: Annotated[int, typer.Option(min=1, max=65_535, help="As for `tandem up`.")] = 5555,
    home: Annotated[Path, typer.Option(envvar="TANDEM_HOME", help="As for `tandem up`.")] = DEFAULT_HOME,
) -> None:
    """Check this machine: installation, models, server, memory, ports. Exit code 1 if something fails."""
    console = Console(highlight=False)
    options = UpOptions(home=home, host=host, port=port, flower_port=flower_port)
    with console.status("examining this machine"):
        findings = list(examine(options))
    if console.is_terminal:
        console.print(_table(findings))
    else:
        for finding in findings:
            fix = f" -> {finding.fix}" if finding.fix else ""
            console.print(Text(f"{finding.status:<5} {finding.check}: {finding.found}{fix}"), soft_wrap=True)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


def _table(findings: list[Finding]) -> Table:
    table = Table("", "check", "found", "what to do")
    for finding in findings:
        status = Text(finding.status, style=COLOURS[finding.status])
        table.add_row(status, Text(finding.check), Text(finding.found), Text(finding.fix))
    return table
