"""The `tandem` command: one file for each subcommand, registered here."""

import sys

import typer
from rich.console import Console

from tandem.cli import (
    adapters,
    batch,
    cancel,
    dead,
    doctor,
    flower,
    gc,
    jobs,
    keys,
    lanes,
    logs,
    models,
    pause,
    submit,
    up,
)
from tandem.cli.failures import failure_line
from tandem.errors import ConfigurationError, TandemError

EXIT_FAILED = 1
EXIT_USAGE = 2
"""The command could not start: a bad option or setting (the same code that a wrong option has)."""

app = typer.Typer(
    name="tandem",
    help="Asynchronous ML jobs on GPUs that you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("flower")(flower.flower)
app.command("doctor")(doctor.doctor)
app.command("submit")(submit.submit)
app.command("jobs")(jobs.jobs)
app.command("logs")(logs.logs)
app.command("cancel")(cancel.cancel)
app.command("pause")(pause.pause)
app.command("resume")(pause.resume)
app.command("lanes")(lanes.lanes)
app.command("models")(models.models)
app.command("gc")(gc.gc)
app.add_typer(adapters.adapters, name="adapters")
app.add_typer(batch.batch, name="batch")
app.add_typer(dead.dead, name="dead")
app.add_typer(keys.keys, name="keys")


def main() -> None:
    """The entry point: one of Tandem's own errors is one clear line, any other shows its traceback."""
    try:
        app()
    except TandemError as error:
        Console(stderr=True, soft_wrap=True).print(failure_line(error))
        sys.exit(EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_FAILED)
