"""`tandem up`: the whole service on this machine, in the foreground."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tandem.cli.welcome import welcome
from tandem.embedded import Deployment, UpOptions, prepare
from tandem.home import DEFAULT_HOME, Home, RunningService
from tandem.ports import LOOPBACK
from tandem.supervisor import StopRequested, Supervisor, Wakeups

MAX_WORKERS = 64
"""Of one machine; more is a typing error."""


def up(
    host: Annotated[
        str, typer.Option(envvar="TANDEM_HOST", help="The API's address; 0.0.0.0 lets other machines in.")
    ] = LOOPBACK,
    port: Annotated[
        int, typer.Option(envvar="TANDEM_PORT", min=0, max=65_535, help="The API's port; 0 takes a free one.")
    ] = 8000,
    flower_port: Annotated[int, typer.Option(min=0, max=65_535, help="Flower's port; 0 takes a free one.")] = 5555,
    home: Annotated[
        Path, typer.Option(envvar="TANDEM_HOME", help="Folder of the data, keys and logs.")
    ] = DEFAULT_HOME,
    workers: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="Worker processes.")] = 1,
    flower: Annotated[bool, typer.Option(help="Run Flower, the web page of workers and tasks.")] = True,
    ephemeral: Annotated[
        bool,
        typer.Option("--ephemeral", help="Keep no jobs on the disk: they are lost when the queue's server ends."),
    ] = False,
    lifeline: Annotated[
        int | None, typer.Option(hidden=True, help="Socket: told when all is ready; its end stops the service.")
    ] = None,
) -> None:
    """Run the whole service on this machine: Valkey, API, workers, Flower. Ctrl-C stops all of it."""
    options = UpOptions(
        home=home,
        host=host,
        port=port,
        flower_port=flower_port,
        workers=workers,
        flower=flower,
        ephemeral=ephemeral,
    )
    place = Home(options.home)
    place.create()
    with place.locked(), Wakeups(lifeline) as wakeups:
        _Foreground(place, wakeups).run(prepare(options, place, os.getpid()), lifeline)


class _Foreground:
    """What the user sees of a running service."""

    def __init__(self, home: Home, wakeups: Wakeups) -> None:
        self._console = Console(highlight=False)
        self._home = home
        self._supervisor = Supervisor(wakeups, report=self._say, restarted=self._announce)
        self._service: RunningService | None = None

    def run(self, deployment: Deployment, lifeline: int | None) -> None:
        """From the first start to the last end."""
        try:
            self._start(deployment)
            self._service = deployment.service
            self._announce()
            welcome(self._console, deployment.service, deployment.models, self._home)
            if lifeline is not None:
                os.write(lifeline, b"\n")
            self._supervisor.run()
        except StopRequested:
            self._say("asked to stop while starting")
        finally:
            self._stop()

    def _stop(self) -> None:
        self._service = None
        self._home.withdraw()
        try:
            self._say("stopping; running jobs may still end (once more Ctrl-C kills at once)")
        finally:
            # Also if the terminal is gone, and nothing can be said any more.
            self._supervisor.stop()
        self._say("stopped")

    def _start(self, deployment: Deployment) -> None:
        waiting = [child.name for child in (deployment.valkey, *deployment.others)]
        begun = time.monotonic()
        with self._console.status(f"starting {', '.join(waiting)}") as status:

            def ready(name: str) -> None:
                waiting.remove(name)
                self._console.print(f"[green]✓[/green] {name} is ready ({time.monotonic() - begun:.1f} s)")
                if waiting:
                    status.update(f"starting {', '.join(waiting)}")

            self._supervisor.start([deployment.valkey], ready=ready)
            self._supervisor.start(deployment.others, ready=ready)

    def _announce(self) -> None:
        """Write down where the service is; again after each restart, whose process has another id."""
        if self._service is not None:
            self._home.announce(self._service.model_copy(update={"pids": self._supervisor.pids}))

    def _say(self, line: str) -> None:
        self._console.print(Text(time.strftime("%H:%M:%S "), style="dim") + Text(line), soft_wrap=True)
