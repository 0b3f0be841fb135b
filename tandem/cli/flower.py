"""`tandem flower`: Celery's web page of workers and tasks, locked down."""

import logging
import signal
from typing import Annotated, Any

import typer
from pydantic import Field, SecretStr

from tandem.errors import ConfigurationError
from tandem.ports import LOOPBACK, PortWish, reserve
from tandem.settings import Settings
from tandem.tickets import create_app

USER = "tandem"
"""Flower's one user; the password is made by `tandem up`."""
TASKS_KEPT = 10_000
"""In Flower's memory, about 3 KB each. The jobs themselves are in the store; this is the page's window on them."""


class FlowerSettings(Settings):
    """What Flower needs besides."""

    flower_password: SecretStr = Field(min_length=8)


def flower(
    address: Annotated[
        str, typer.Option(help="Address to listen on; put a proxy with TLS before others.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 5555,
) -> None:
    """Run Flower over TANDEM_REDIS_URL, read-only, for user `tandem` with the password TANDEM_FLOWER_PASSWORD."""
    settings = FlowerSettings.read()
    reserve([PortWish("--port", address, port)])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Each request that is answered as it should be is no news.
    logging.getLogger("tornado.access").setLevel(logging.WARNING)
    server = _server(settings, address, port)

    def stop(_number: int, _frame: object) -> None:
        server.io_loop.add_callback_from_signal(server.stop)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server.start_http_server()
    logging.getLogger(__name__).info("Flower listens on http://%s:%d", address, port)
    server.start()


def _server(settings: FlowerSettings, address: str, port: int) -> Any:
    """Flower's application, made here and not by its command line.

    Its own command takes the password as an argument, which every user of the machine can read, or from FLOWER_*
    variables, and it runs a `flowerconfig.py` that lies in the current folder.
    """
    try:
        from flower.app import Flower
        from flower.options import options
        from flower.urls import settings as web_settings
        from flower.views.monitor import Metrics
        from tornado.web import authenticated
    except ImportError as error:
        raise ConfigurationError(
            f"Flower is not installed ({error.name}): pip install 'tandem-jobs[flower]'"
        ) from error
    options.address = address
    options.port = port
    options.basic_auth = [f"{USER}:{settings.flower_password.get_secret_value()}"]
    options.read_only = True
    options.persistent = False
    options.max_tasks = TASKS_KEPT
    server = Flower(capp=create_app(settings), options=options, **web_settings)
    # Flower 2.2 shows /metrics to everybody, password or not; the names of models and workers are in it.
    # /healthcheck stays open: it says OK and nothing else.
    guarded = type("GuardedMetrics", (Metrics,), {"get": authenticated(Metrics.get)})
    server.add_handlers(r".*", [(r"/metrics", guarded)])
    return server
