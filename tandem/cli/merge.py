"""`tandem adapters merge`: an adapter and its base as one model, for programs that take no adapters."""

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tandem.catalogue import Catalogue
from tandem.client import Tandem
from tandem.errors import ConfigurationError, InvalidRequest
from tandem.settings import Settings


def merge_adapter(adapter: str, out: Path, base: str | None) -> None:
    """Write the merged model into `out`. `base` is a folder or hub id; None looks it up in this machine's catalogue.

    Raises ConfigurationError where the worker's packages are not installed, UnknownAdapter, UnknownModel, and
    InvalidRequest for an adapter that cannot be merged.
    """
    if find_spec("torch") is None:
        raise ConfigurationError(
            "merging needs the worker's packages: run it where a worker is installed (`pip install 'tandem-jobs"
            "[worker]'`)"
        )
    with tempfile.TemporaryDirectory(prefix="tandem-merge-") as name, Tandem() as client:
        folder = client.download_adapter(adapter, Path(name))
        source = base or _catalogued(client.adapter(adapter).base)
        # A process of its own: the client's package imports no torch.
        ended = subprocess.run(
            [sys.executable, "-m", "worker.merge", source, str(folder), str(out)],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    if ended.returncode != 0:
        reason = ended.stderr.strip().splitlines()
        raise InvalidRequest(reason[-1] if reason else f"it ended with {ended.returncode}", param="adapter")


def _catalogued(base: str) -> str:
    entry = Catalogue.load(Settings()).get(base)
    return str(entry.folder or entry.hub)
