"""`tandem lanes`: what waits where, and what is paused."""

import time
from typing import Annotated

import typer

from tandem.cli.tables import duration_text, lanes_table, print_json, print_table
from tandem.client import Tandem


def lanes(*, as_json: Annotated[bool, typer.Option("--json", help="Print the JSON object.")] = False) -> None:
    """List the lanes: each holds the jobs of one kind and model."""
    with Tandem() as client:
        found = client.lanes()
    if as_json:
        print_json(found.record)
        return
    now = time.time()
    print_table(lanes_table(found, now), empty="there are no lanes")
    if found.paused_since is not None:
        typer.echo(
            f"the whole service has been paused for {duration_text(now - found.paused_since)}; "
            "`tandem resume --all` ends that"
        )
