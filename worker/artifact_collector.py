"""Deletes, now and then, the artifacts that nothing refers to: one worker at a time."""

import logging
import threading

from tandem.collecting import collect_if_due
from tandem.errors import ConfigurationError, QueueUnavailable
from tandem.services import Services

log = logging.getLogger(__name__)

LOOKS = 10
"""Within an interval a worker looks so often whether it is time."""


class ArtifactCollector:
    def __init__(self, services: Services, interval_seconds: float) -> None:
        self._services = services
        self._interval = interval_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval / LOOKS):
            try:
                done = collect_if_due(self._services, interval_seconds=self._interval)
            except (QueueUnavailable, ConfigurationError, OSError) as error:
                log.warning("artifacts were not collected: %s", error)
                continue
            if done is not None and done.deleted:
                log.info("%d artifacts that nothing refers to are deleted, %d bytes", done.deleted, done.bytes)
