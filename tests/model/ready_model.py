"""The model's jobs, and which of a lane's ready ones goes next: priorities with ageing, fair share, tickets."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.model.clocked_library import AGED_TURN, TICKETS_KEPT
from tests.model.fair_share import FairShare

AGEING_MS = 60_000
"""What the stores of the tests are given as `ageing_seconds`."""
PRIORITIES = (3, 2, 1, 0)
"""The most urgent first."""

Place = Literal["ready", "alone", "delayed", "held", "running", "ended"]
"""Where a job is: every job is in exactly one place. `alone` is ready too, for a worker that runs nothing else;
`held` is a queued job that somebody has paused."""


@dataclass(slots=True)
class ModelJob:
    """A job's record, and below it what else the queue knows of the job. Times are milliseconds."""

    id: str
    sequence: int
    owner: str
    kind: str
    model: str
    lane: str
    priority: int
    keep_ms: int
    created_at: int
    state: str = "queued"
    attempt: int = 0
    crashes: int = 0
    forgiven: int = 0
    """Of its crashes, those that do not count against it."""
    retries: int = 0
    not_before: int | None = None
    deadline: int | None = None
    webhook: bool = False
    ready_at: int | None = None
    worker: str | None = None
    started_at: int | None = None
    progress: str | None = None
    checkpoint: str | None = None
    cancel_requested: bool = False
    paused: bool = False
    suspect: bool = False
    """It was lost together with others: it runs alone next."""
    trusted: bool = False
    """It has outlived its probation: it no longer counts as company on its worker."""
    finished_at: int | None = None
    finished_by: int | None = None
    result: str | None = None
    failure: str | None = None
    dead: bool = False
    requeued_from: str | None = None
    requeued_as: str | None = None
    webhook_tries: int = 0
    webhook_note: str | None = None

    spec: str = ""
    place: Place = "held"
    lease_until: int = 0
    is_deadline_watched: bool = False
    """Until it has ended or the sweep has told its attempt."""
    forget_at: int = 0
    died_at: int | None = None
    """Of a dead letter that nobody has requeued."""
    webhook_at: int | None = None
    """When to tell its webhook next."""
    events: list[tuple[str, Any]] = field(default_factory=list)


def in_order(jobs: Iterable[ModelJob]) -> list[ModelJob]:
    """In the order of submission."""
    return sorted(jobs, key=lambda job: job.sequence)


class ReadyModel:
    """All jobs, and the order in which the ready ones go."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.jobs: dict[str, ModelJob] = {}
        self.weights: dict[str, float] = {}
        self.shares: defaultdict[tuple[int, str], FairShare] = defaultdict(FairShare)
        self.turns: Counter[str] = Counter()
        self.lanes: set[str] = set()
        self.paused: dict[str, int] = {}
        """Lanes, or `*` for all -> since when."""
        self.tickets: Counter[str] = Counter()
        """Lane -> how many are in its list."""
        self.tickets_pushed = 0

    def is_paused(self, lane: str) -> bool:
        return lane in self.paused or "*" in self.paused

    def ready(self, lane: str, *places: Place) -> list[ModelJob]:
        return in_order(job for job in self.jobs.values() if job.lane == lane and job.place in places)

    def top_up(self, lane: str) -> int:
        """A ticket for each ready job, up to a bound; none while the lane is paused."""
        if self.is_paused(lane):
            return 0
        wanted = min(len(self.ready(lane, "ready", "alone")), TICKETS_KEPT)
        missing = max(wanted - self.tickets[lane], 0)
        self.tickets[lane] += missing
        self.tickets_pushed += missing
        return missing

    def put_ready(self, job: ModelJob) -> None:
        job.ready_at = self.now
        if job.suspect:
            job.place = "alone"
        else:
            job.place = "ready"
            self.shares[job.priority, job.lane].enter(job.owner)
        self.top_up(job.lane)

    def take_out(self, job: ModelJob, to: Place) -> None:
        """The job leaves the place where it waits."""
        was, job.place = job.place, to
        if was == "ready" and not self._ready_of(job.priority, job.lane, job.owner):
            self.shares[job.priority, job.lane].leave(job.owner)

    def next_job(self, lane: str) -> ModelJob | None:
        """Whose turn it is: of the most urgent priority, unless this turn is for those that aged."""
        is_aged_turn = (self.turns[lane] + 1) % AGED_TURN == 0
        job = self._aged(lane) if is_aged_turn else None
        return job or next((job for p in PRIORITIES if (job := self._next_of(p, lane))), None)

    def charge(self, job: ModelJob) -> None:
        """The job goes: that is a turn of its lane, and its owner pays."""
        self.turns[job.lane] += 1
        self.shares[job.priority, job.lane].charge(job.owner, self.weights.get(job.owner, 1.0))

    def _aged(self, lane: str) -> ModelJob | None:
        """Of each priority's next job the one that has waited longest, if that is beyond the ageing time."""
        heads = [job for p in reversed(PRIORITIES) if (job := self._next_of(p, lane))]
        oldest = min(heads, key=lambda job: job.ready_at or 0, default=None)
        return oldest if oldest and self.now - (oldest.ready_at or 0) > AGEING_MS else None

    def _next_of(self, priority: int, lane: str) -> ModelJob | None:
        owner = self.shares[priority, lane].first()
        return None if owner is None else self._ready_of(priority, lane, owner)[0]

    def _ready_of(self, priority: int, lane: str, owner: str) -> list[ModelJob]:
        return [job for job in self.ready(lane, "ready") if job.priority == priority and job.owner == owner]
