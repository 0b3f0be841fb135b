"""When a child that ended is started again: decided here without processes and clocks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The delay doubles from the first to the longest, and starts anew after a healthy run. It never gives up."""

    first_seconds: float = 0.2
    """Short: a worker that was killed by accident is back at once."""
    longest_seconds: float = 10.0
    """A child that cannot run costs little, and is back soon after its cause is gone."""
    healthy_seconds: float = 30.0
    """A run this long shows that the cause of earlier crashes is gone."""


class ChildState:
    """One child's life as its supervisor sees it: due, running or stopping. Times are seconds of one clock."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._started_at: float | None = None
        self._due_at: float | None = None
        self._delay = policy.first_seconds
        self.stopping = False
        self.crashes = 0
        """Ends that nobody asked for."""

    @property
    def due_at(self) -> float | None:
        """When it is to be started again; None while it runs, was never started, or is to stay down."""
        return self._due_at

    def is_due(self, now: float) -> bool:
        return self._due_at is not None and now >= self._due_at

    def started(self, now: float) -> None:
        self._started_at, self._due_at = now, None

    def ended(self, now: float) -> float | None:
        """Note its end; answers the seconds until it is to be started again, None if it is to stay down."""
        if self._started_at is None:
            raise ValueError("it was not running")
        ran, self._started_at = now - self._started_at, None
        if self.stopping:
            return None
        self.crashes += 1
        if ran >= self._policy.healthy_seconds:
            self._delay = self._policy.first_seconds
        delay, self._delay = self._delay, min(self._delay * 2, self._policy.longest_seconds)
        self._due_at = now + delay
        return delay

    def stop(self) -> None:
        """From now on an end is no crash, and nothing is started."""
        self.stopping, self._due_at = True, None
