"""`tandem pause` and `tandem resume`: hold a job, a lane or the whole service back, and let it go on."""

from typing import Annotated

import typer

from tandem.client import JobHandle, Tandem
from tandem.job import JobState

Job = Annotated[str | None, typer.Argument(help="The job's id.")]
Lane = Annotated[str | None, typer.Option(help="All jobs of a lane; `tandem lanes` lists them.")]
All = Annotated[bool, typer.Option("--all", help="All jobs of the service, as for maintenance.")]


def pause(job: Job = None, *, lane: Lane = None, service: All = False) -> None:
    """Hold a job back until it is resumed: a running one stops within a step, keeps what it has, and waits.

    Of a paused lane or service no more jobs begin; running ones go on, new ones queue.
    """
    _check_one(job, lane, service)
    with Tandem() as client:
        if job is not None:
            typer.echo(_paused_text(client.pause(job)))
        elif lane is not None:
            client.pause_lane(lane)
            typer.echo(f"no more jobs of {lane} begin; `tandem resume --lane {lane}` ends that")
        else:
            client.pause_service()
            typer.echo("no more jobs begin; `tandem resume --all` ends that")


def resume(job: Job = None, *, lane: Lane = None, service: All = False) -> None:
    """Let a job, a lane or the whole service go on."""
    _check_one(job, lane, service)
    with Tandem() as client:
        if job is not None:
            after = client.resume(job)
            typer.echo(f"{job} is {after.state}")
        elif lane is not None:
            client.resume_lane(lane)
            typer.echo(f"jobs of {lane} begin again")
        else:
            client.resume_service()
            typer.echo("jobs begin again; `tandem lanes` lists lanes that were paused by themselves")


def _check_one(job: str | None, lane: str | None, service: bool) -> None:
    if (job is not None) + (lane is not None) + service != 1:
        raise typer.BadParameter("give one of: a job's id, --lane, --all", param_hint="JOB")


def _paused_text(job: JobHandle) -> str:
    if job.state.is_terminal:
        return f"{job.id} had ended before: {job.state}"
    if job.state is JobState.RUNNING:
        return f"{job.id} was asked to stop and wait; `tandem resume {job.id}` lets it go on"
    return f"{job.id} waits until `tandem resume {job.id}`"
