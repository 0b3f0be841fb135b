"""`tandem cancel`: stop a job."""

from typing import Annotated

import typer

from tandem.client import Tandem


def cancel(job: Annotated[str, typer.Argument(help="The job's id.")]) -> None:
    """Cancel a queued job at once; ask a running one to stop."""
    with Tandem() as client:
        before = client.get(job)
        after = client.cancel(job)
    if before.state.is_terminal:
        typer.echo(f"{job} had ended before: {after.state}")
    elif after.state.is_terminal:
        typer.echo(f"{job} is {after.state}")
    else:
        typer.echo(f"{job} was asked to stop; `tandem logs -f {job}` shows when it has")
