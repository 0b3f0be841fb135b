"""One execution of a job: how its runner reports, and how it learns that it must stop."""

import threading
import time
from collections.abc import Callable
from typing import Any

from tandem.errors import AttemptStopped, DeadlineExceeded
from tandem.job import Job
from tandem.job_store import Claim, JobStore

Event = tuple[str, dict[str, Any]]


class Attempt:
    """A claimed job. Thread-safe: the lease keeper stops it while the runner works.

    Events are buffered here and sent by the reporter, so that neither the engine nor the training ever waits for
    Redis.
    """

    def __init__(self, claim: Claim, jobs: JobStore, notify: Callable[["Attempt"], None]) -> None:
        self.job: Job = claim.job
        self.fence = claim.fence
        self.deadline = None if claim.seconds_left is None else time.monotonic() + claim.seconds_left
        """When the job expires, on this process's monotonic clock (seconds)."""
        self._jobs = jobs
        self._notify = notify
        self._lock = threading.Lock()
        self._stopped: AttemptStopped | None = None
        self._on_stop: list[Callable[[], None]] = []
        self._events: list[Event] = []
        self._leave: Callable[[], Any] = lambda: None
        self.sending = threading.Lock()
        """Held by whoever sends the buffered events: they keep their order."""

    def check(self) -> None:
        """Raises Cancelled, Superseded, Draining, Paused or DeadlineExceeded once the attempt must stop."""
        if self._stopped is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.stop(DeadlineExceeded())
        if self._stopped is not None:
            raise self._stopped

    def stop(self, reason: AttemptStopped) -> None:
        """Ask the runner to stop. The first reason stands."""
        with self._lock:
            if self._stopped is not None:
                return
            self._stopped = reason
            callbacks, self._on_stop = self._on_stop, []
        for callback in callbacks:
            callback()

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Call when the attempt must stop; at once, if that is so already."""
        with self._lock:
            if self._stopped is None:
                self._on_stop.append(callback)
                return
        callback()

    def report(self, event: str, data: dict[str, Any]) -> None:
        """Add an event; returns at once. Pieces of the same text that were not yet sent become one event."""
        with self._lock:
            place = self._unsent(data.get("index")) if event == "tokens" else None
            if place is None:
                self._events.append((event, data))
            else:
                held = self._events[place][1]
                joined = {**held, "text": held["text"] + data["text"]}
                if "logprobs" in data:
                    joined["logprobs"] = [*held["logprobs"], *data["logprobs"]]
                self._events[place] = ("tokens", joined)
        self._notify(self)

    def _unsent(self, index: int | None) -> int | None:
        """Where the last unsent piece of this text stands; pieces of other texts between them do not matter."""
        for place in range(len(self._events) - 1, -1, -1):
            kind, held = self._events[place]
            if kind != "tokens":
                return None
            if held.get("index") == index:
                return place
        return None

    def save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a later attempt goes on from: `files` (name → artifact digest) and more; waits for the answer.

        Raises Superseded, QueueUnavailable.
        """
        self._jobs.save_checkpoint(self.job.id, self.fence, checkpoint)

    def leave(self, make: Callable[[], Any]) -> None:
        """If the job ends without success, its result is what `make` gives then."""
        self._leave = make

    def left(self) -> Any:
        """The result of a job that ends now without success. Raises what making it raises."""
        return self._leave()

    def of_row(self, job: Job) -> "Attempt":
        """An execution of one row of this job, as `job` says: with its deadline; who runs the rows stops it.

        What it reports reaches nobody, and it keeps no checkpoint.
        """
        left = None if self.deadline is None else self.deadline - time.monotonic()
        return Attempt(Claim(job, self.fence, left), self._jobs, lambda _row: None)

    def take_events(self) -> list[Event]:
        with self._lock:
            events, self._events = self._events, []
        return events

    def give_back_events(self, events: list[Event]) -> None:
        """Put events that could not be sent before those that came since."""
        with self._lock:
            self._events = events + self._events
