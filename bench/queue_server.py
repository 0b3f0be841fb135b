"""The one kind of server that every side gets: Valkey with AOF, as `tandem up` configures it, empty at first."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem import embedded_valkey
from tandem.ports import PortWish, reserve

PASSWORD = "bench"  # noqa: S105  # of a server that lives as long as one measurement
LOOK_SECONDS = 0.02
START_SECONDS = 30.0


@contextmanager
def valkey() -> Iterator[str]:
    """Its URL."""
    with tempfile.TemporaryDirectory() as folder:
        (port,) = reserve([PortWish("", "127.0.0.1", 0)])
        configuration = embedded_valkey.configure(Path(folder), port=port, password=PASSWORD)
        process = subprocess.Popen([embedded_valkey.binary(), configuration], stdout=subprocess.DEVNULL)
        try:
            url = embedded_valkey.url(port=port, password=PASSWORD)
            _wait_for_answer(process, url)
            yield url
        finally:
            process.terminate()
            process.wait()


def _wait_for_answer(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not embedded_valkey.answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"Valkey does not answer (exit status {process.poll()})")
        time.sleep(LOOK_SECONDS)
