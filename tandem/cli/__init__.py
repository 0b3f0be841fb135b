"""The `tandem` command: one file for each subcommand, registered here."""

import sys

import typer
from rich.console import Console
from rich.text import Text

from tandem.cli import up
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


def main() -> None:
    """The entry point: one of Tandem's own errors is one clear line, any other shows its traceback."""
    try:
        app()
    except TandemError as error:
        Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red") + Text(error.message))
        sys.exit(EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_FAILED)
