"""`tandem dead`: the jobs whose tries are used up, and doing their work anew."""

import time
from itertools import islice
from typing import Annotated

import typer

from tandem.cli.tables import dead_letters_table, print_json, print_table, record_table
from tandem.client import JobHandle, Tandem

BATCH = 100
"""Dead letters that `requeue --all` takes at a time."""
TIMES = ("created_at", "not_before", "deadline", "started_at", "finished_at")

dead = typer.Typer(help="List, look at and requeue dead letters: jobs whose tries are used up.", no_args_is_help=True)


@dead.command("list")
def list_dead(
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many to show.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the dead letters that nobody has requeued, the latest first."""
    with Tandem() as client:
        found = list(client.dead_letters(limit=limit))
    if as_json:
        print_json([job.record for job in found])
    else:
        print_table(dead_letters_table(found, time.time()), empty="there are no dead letters")


@dead.command("show")
def show(
    job: Annotated[str, typer.Argument(help="The dead letter's id.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON object.")] = False,
) -> None:
    """Show all that is known of a dead letter: what was asked, and what it died of."""
    with Tandem() as client:
        found = client.get(job)
    if as_json:
        print_json(found.record)
    else:
        print_table(record_table(found.record, times=TIMES))


@dead.command("requeue")
def requeue(
    jobs: Annotated[list[str] | None, typer.Argument(help="The dead letters' ids.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
) -> None:
    """Do the work of dead letters anew, each as a new job; a line for each says which."""
    if bool(jobs) == everything:
        raise typer.BadParameter("give dead letters' ids, or --all", param_hint="JOBS")
    with Tandem() as client:
        for job in jobs or ():
            _requeue(client, job)
        # Each leaves the list when it is requeued: the first ones are always those still to be done.
        while everything and (letters := list(islice(client.dead_letters(), BATCH))):
            for letter in letters:
                _requeue(client, letter)


def _requeue(client: Tandem, job: JobHandle | str) -> None:
    typer.echo(f"{job if isinstance(job, str) else job.id} -> {client.requeue(job).id}")
