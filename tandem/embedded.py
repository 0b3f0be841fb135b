"""The embedded default: which processes `tandem up` runs on one machine, and with which settings."""

import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from tandem import embedded_valkey
from tandem.artifacts import ArtifactStore
from tandem.catalogue import Catalogue, CatalogueEntry
from tandem.errors import ConfigurationError, QueueUnavailable
from tandem.home import DEFAULT_HOME, Home, RunningService
from tandem.job_store import JobStore
from tandem.ports import LOOPBACK, PortWish, reserve
from tandem.settings import WorkerSettings
from tandem.supervisor import ChildSpec
from tandem.workers import WorkerRegistry

ANSWER_SECONDS = 1.0
"""A server on this machine that takes longer to answer is not ready."""
RELEASE_SECONDS = 15.0
"""After a worker's drain: 10 s for what still runs to be released, and some for the process to end."""
STOP_SECONDS = 5.0
"""For the API to end its requests, for Flower, and for Valkey to write the end of its file."""
EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104  # compared, not bound
"""A server that listens on every address is asked on loopback."""
EXTRAS = {"fastapi": "api", "uvicorn": "api", "torch": "worker", "transformers": "worker", "flower": "embedded"}
"""A package that a process needs → the extra that installs it."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The options of `tandem up`. A port of 0 is any free one."""

    home: Path = DEFAULT_HOME
    host: str = LOOPBACK
    """The API's address; Valkey and Flower stay on loopback."""
    port: int = 8000
    flower_port: int = 5555
    workers: int = 1
    flower: bool = True
    ephemeral: bool = False
    """Keep no jobs on the disk: for trials, and where losing them is fine."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is to run: the server first, then the rest together."""

    valkey: ChildSpec
    others: tuple[ChildSpec, ...]
    service: RunningService
    """Where it will be; without process ids yet."""
    models: tuple[CatalogueEntry, ...]


def prepare(options: UpOptions, home: Home, supervisor: int) -> Deployment:
    """Check everything that can be checked, then choose ports and write what the processes read.

    Raises ConfigurationError naming what is missing or wrong, and its fix; nothing was started then. `home` must be
    locked by the caller, whose process id `supervisor` is.
    """
    settings = _settings(home)
    _check_packages(options)
    models = _check_models(Catalogue.load(settings))
    program = embedded_valkey.binary()
    wishes = [PortWish("--port", options.host, options.port), PortWish("(its own choice)", LOOPBACK, 0)]
    if options.flower:
        wishes.append(PortWish("--flower-port", LOOPBACK, options.flower_port))
    api_port, valkey_port, *flower_ports = reserve(wishes)

    password = home.secret("valkey-password")
    if given := os.environ.get("TANDEM_API_KEY"):
        home.keep_secret("api-key", given)
    service = RunningService(
        supervisor=supervisor,
        api_url=_address(EVERYWHERE.get(options.host, options.host), api_port),
        api_key=home.secret("api-key", prefix="tandem-"),
        redis_url=embedded_valkey.url(port=valkey_port, password=password),
        flower_url=_address(LOOPBACK, flower_ports[0]) if options.flower else None,
        flower_password=home.secret("flower-password") if options.flower else None,
        pids={},
    )
    inherited = {name: value for name, value in os.environ.items() if name != "TANDEM_API_KEY"}
    common = {
        **inherited,
        "TANDEM_REDIS_URL": service.redis_url,
        "TANDEM_EPHEMERAL": str(options.ephemeral or settings.ephemeral).lower(),
        "TANDEM_ARTIFACTS_URL": settings.artifacts_url,
        "TANDEM_MODELS_DIR": str(settings.models_dir.absolute()),
        # A log that comes in blocks is late when one looks at it.
        "PYTHONUNBUFFERED": "1",
    }
    registry = WorkerRegistry(
        JobStore(settings.model_copy(update={"redis_url": service.redis_url}), ArtifactStore(settings.artifacts_url))
    )
    names = [f"worker-{number}" for number in range(1, options.workers + 1)]
    others = [
        _api(home, service, common, options.host, api_port),
        *(_worker(home, name, common, settings.drain_seconds, registry) for name in names),
    ]
    if options.flower:
        others.append(_flower(home, service, common, flower_ports[0]))
    configuration = embedded_valkey.configure(
        home.valkey, port=valkey_port, password=password, ephemeral=options.ephemeral
    )
    valkey = ChildSpec(
        name="valkey",
        command=(str(program), str(configuration)),
        environment=inherited,
        log=home.new_log("valkey"),
        stage=0,
        stop_seconds=STOP_SECONDS,
        ready=lambda _pid: embedded_valkey.answers(service.redis_url),
    )
    return Deployment(valkey, tuple(others), service, models)


def _api(home: Home, service: RunningService, common: Mapping[str, str], host: str, port: int) -> ChildSpec:
    environment = {
        **common,
        "TANDEM_API_KEY": service.api_key,
        # Hexadecimal digits are base64 as well: 48 bytes of it.
        "TANDEM_WEBHOOK_SECRET": os.environ.get("TANDEM_WEBHOOK_SECRET")
        or home.secret("webhook-secret", prefix="whsec_"),
        "TANDEM_HOST": host,
        "TANDEM_PORT": str(port),
    }
    if service.flower_url is not None:
        environment["TANDEM_FLOWER_URL"] = service.flower_url
    return ChildSpec(
        name="api",
        command=(sys.executable, "-m", "api"),
        environment=environment,
        log=home.new_log("api"),
        stage=2,
        stop_seconds=STOP_SECONDS,
        ready=lambda _pid: _is_ok(f"{service.api_url}/readyz"),
    )


def _worker(
    home: Home, name: str, common: Mapping[str, str], drain_seconds: float, registry: WorkerRegistry
) -> ChildSpec:
    return ChildSpec(
        name=name,
        command=(sys.executable, "-m", "worker"),
        # OpenMP threads that spin while they wait slow a step 40 times when one other process runs (measured).
        environment={"OMP_WAIT_POLICY": "passive", **common},
        log=home.new_log(name),
        stage=1,
        stop_seconds=drain_seconds + RELEASE_SECONDS,
        ready=lambda pid: _has_announced_itself(registry, pid),
    )


def _flower(home: Home, service: RunningService, common: Mapping[str, str], port: int) -> ChildSpec:
    return ChildSpec(
        name="flower",
        command=(sys.executable, "-m", "tandem.cli", "flower", "--port", str(port)),
        environment={**common, "TANDEM_FLOWER_PASSWORD": service.flower_password or ""},
        log=home.new_log("flower"),
        stage=3,
        stop_seconds=STOP_SECONDS,
        ready=lambda _pid: _is_ok(f"{service.flower_url}/healthcheck"),
    )


def _is_ok(url: str) -> bool:
    # The standard library's client: made often, it costs nothing (httpx reads its certificates each time), and it
    # takes no proxy from the environment; this machine asks itself.
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _has_announced_itself(workers: WorkerRegistry, pid: int) -> bool:
    try:
        return any(worker.pid == pid for worker in workers.list())
    except QueueUnavailable:
        return False


def _settings(home: Home) -> WorkerSettings:
    """The settings of this process's environment, with the home's artifacts unless it names others."""
    settings = WorkerSettings.read()
    if "redis_url" in settings.model_fields_set:
        raise ConfigurationError(
            "TANDEM_REDIS_URL is set, but `tandem up` runs a Valkey server of its own; unset it, or run "
            "`python -m api` and `python -m worker` with it (docker-compose.yml shows how)",
            param="TANDEM_REDIS_URL",
        )
    if "artifacts_url" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"artifacts_url": f"file://{home.artifacts}"})


def _check_packages(options: UpOptions) -> None:
    missing = [
        package
        for package in EXTRAS
        if (options.flower or package != "flower") and importlib.util.find_spec(package) is None
    ]
    if missing:
        extras = ",".join(sorted({EXTRAS[package] for package in missing}))
        raise ConfigurationError(
            f"not installed: {', '.join(missing)}; run `make install`, or pip install 'tandem-jobs[{extras}]'"
        )


def missing_models(catalogue: Catalogue) -> list[CatalogueEntry]:
    """The catalogue's entries whose folder holds no model."""
    return [
        entry
        for entry in catalogue.entries()
        if entry.folder is not None and not (entry.folder / "config.json").is_file()
    ]


def _check_models(catalogue: Catalogue) -> tuple[CatalogueEntry, ...]:
    missing = missing_models(catalogue)
    if missing:
        named = ", ".join(f"{entry.name} (in {entry.folder})" for entry in missing)
        raise ConfigurationError(
            f"there are no files of the model {named}; run `make install`, which prepares the default models, "
            "or correct the catalogue",
            param="TANDEM_MODELS_DIR",
        )
    return catalogue.entries()


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
