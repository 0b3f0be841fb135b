"""`tandem models`: what a job may name as its model."""

from typing import Annotated

import typer

from tandem.cli.tables import models_table, print_json, print_table
from tandem.client import Tandem


def models(*, as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the catalogue's models, what they do (* by default), who has them in memory, and the adapters."""
    with Tandem() as client:
        found = client.models()
    if as_json:
        print_json([model.record for model in found])
    else:
        print_table(models_table(found), empty="the catalogue is empty")
