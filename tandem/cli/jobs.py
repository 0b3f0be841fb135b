"""`tandem jobs`: what was submitted, newest first."""

import time
from typing import Annotated

import typer

from tandem.cli.tables import jobs_table, print_json, print_table
from tandem.client import Tandem
from tandem.job import JobKind, JobState


def jobs(
    *,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    kind: Annotated[JobKind | None, typer.Option(help="Only jobs of this kind.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this base model.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List jobs, newest first."""
    with Tandem() as client:
        found = list(client.jobs(state=state, kind=kind, model=model, limit=limit))
    if as_json:
        print_json([job.record for job in found])
    else:
        print_table(jobs_table(found, time.time()), empty="no such jobs")
