"""The calls on the queue as a whole: dead letters, lanes, and the service itself."""

from collections.abc import Iterator
from typing import Any

from tandem.client.job_calls import JobCalls
from tandem.client.records import JobHandle, Lane, Lanes


class QueueCalls(JobCalls):
    """What an operator does with the queue."""

    def dead_letters(self, *, limit: int | None = None) -> Iterator[JobHandle]:
        """Failed jobs whose tries are used up and that nobody has requeued, the latest death first.

        Read page by page as they are asked for: to requeue them on the way, take a list first.
        """
        return self._pages("/dead-letters", {}, limit)

    def lanes(self) -> Lanes:
        """How every lane stands, and since when the service is paused, if it is."""
        return Lanes.read(self._read("GET", "/lanes"))

    def pause_lane(self, lane: str) -> Lane:
        """Let no more of a lane's jobs begin; running ones go on, new ones queue. Raises NotFound."""
        return Lane.read(self._read("POST", f"/lanes/{lane}/pause"))

    def resume_lane(self, lane: str) -> Lane:
        """Let a lane's jobs begin again. Raises NotFound."""
        return Lane.read(self._read("POST", f"/lanes/{lane}/resume"))

    def pause_service(self) -> float:
        """Let no more jobs begin at all; running ones go on, new ones queue. Since when (seconds since the epoch)."""
        answer: dict[str, Any] = self._read("POST", "/service/pause")
        return float(answer["paused_since"])

    def resume_service(self) -> None:
        """Let jobs begin again; lanes that were paused by themselves stay paused."""
        self._read("POST", "/service/resume")
