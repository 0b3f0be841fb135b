"""The worker process: stores, threads, models and the Celery consumer, from start to drain."""

import gc
import logging
import os
import signal
import socket
import threading
import time
import uuid
from types import FrameType

import torch

from tandem.errors import Draining, QueueUnavailable
from tandem.job import JobKind
from tandem.redis_url import redacted
from tandem.services import Services
from tandem.settings import WorkerSettings
from tandem.tickets import create_app, lane
from tandem.workers import WorkerInfo, WorkerRegistry
from worker.artifact_collector import ArtifactCollector
from worker.device import TRAINING_SHARE, choose_device, memory_bytes
from worker.executor import JobExecutor, Runner
from worker.lane_limit import LaneLimit
from worker.lease import LeaseKeeper
from worker.loading import Loader
from worker.media.limits import MediaLimits
from worker.monitor import JobMonitor
from worker.reaper import Reaper
from worker.reporter import Reporter
from worker.residency import Key, ResidentModels
from worker.resident_model import ResidentModel, resident_task
from worker.runners.batch import BatchRunner
from worker.runners.finetune import FineTuneRunner
from worker.runners.inference import InferenceRunner
from worker.stall import StallWatch, exit_stalled
from worker.ticket_consumer import TicketConsumer
from worker.training.beside_pace import BesidePace
from worker.training.low_priority import has_low_priority
from worker.training.pace import LatencyTarget, Pace, TurnController
from worker.training.room import TrainingRoom
from worker.training.turns import Turns

log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 2.0
"""Between two announcements of this worker."""
ANNOUNCED_FOR_SECONDS = 10.0
"""A worker that is silent for so long is no longer listed."""
CONSUMER_EXIT = 71
"""The exit status when Celery's event loop ended by itself: EX_OSERR of sysexits.h. A supervisor starts it again."""
SHARDS_AT_ONCE = 2
"""Shards of batches that one worker runs at a time: the second one fills the engine's slots while the first one ends,
and more would be kept from other workers."""
RELEASE_SECONDS = 10.0
"""After the drain's grace: for runners to stop within one step and for their jobs to be released."""


class WorkerService:
    def __init__(self, settings: WorkerSettings) -> None:
        """Raises ConfigurationError."""
        self._settings = settings
        self._services = Services.connect(settings)
        self._device = choose_device(settings.device)
        if settings.cpu_threads is not None:
            torch.set_num_threads(settings.cpu_threads)
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        jobs = self._services.jobs
        self._turns = Turns(pace=pace_of(settings, self._device))
        self._stalls = StallWatch(settings.stall_seconds, self._give_up)
        self._residents = self._make_residents()
        self._leases = LeaseKeeper(jobs, settings.lease_seconds, self.id)
        self._reporter = Reporter(jobs)
        self._reaper = Reaper(jobs, settings.sweep_seconds)
        self._collector = ArtifactCollector(self._services, settings.collect_seconds)
        self._consumer = TicketConsumer(
            create_app(settings), hostname=f"worker@{self.id}", threads=settings.threads, on_ticket=self._on_ticket
        )
        self._monitor = JobMonitor(self._consumer.tell_monitors, self._consumer.flush_events)
        self._executor = JobExecutor(jobs, self._leases, self._reporter, self._monitor, self._make_runners(), self.id)
        self._registry = WorkerRegistry(jobs)
        self._trainings = self._limit(settings.trainings, "finetune")
        self._shards = self._limit(SHARDS_AT_ONCE, "batch")
        self._started_at = time.time()
        self._drain_asked = threading.Event()

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, then drain and end the process. Blocks; call from the main thread."""
        # What imports have made stays. Otherwise each full collection, as at the end of a training, looks at half a
        # million objects, and every stream waits 0.3 s for it.
        gc.collect()
        gc.freeze()
        self._leases.start()
        self._reporter.start()
        self._monitor.start()
        self._reaper.start()
        self._collector.start()
        self._stalls.start()
        threading.Thread(target=self._drain, name="drain", daemon=True).start()
        threading.Thread(target=self._announce, name="announce", daemon=True).start()
        # Celery's own handlers end the threads pool in the midst of jobs; ours only set a flag.
        signal.signal(signal.SIGTERM, self._ask_drain)
        signal.signal(signal.SIGINT, self._ask_drain)
        queue, roles = redacted(self._settings.redis_url), ", ".join(self._settings.roles)
        log.info("worker %s on %s, roles %s, queue %s", self.id, self._device, roles, queue)
        self._consumer.run([*self._lanes("inference"), *self._lanes("batch"), *self._lanes("finetune")])
        # The drain ends the process; Celery's loop ends by itself only when it has failed.
        log.critical("the ticket consumer has ended: the worker ends with status %d", CONSUMER_EXIT)
        self._leases.give_up()
        logging.shutdown()
        os._exit(CONSUMER_EXIT)

    def _make_residents(self) -> ResidentModels[ResidentModel]:
        catalogue = self._services.catalogue
        loader = Loader(self._settings, self._device, self._turns, self._stalls)

        def measure(key: Key) -> int:
            return loader.measure(catalogue.get(key[0]), key[1])

        def load(key: Key) -> ResidentModel:
            return loader.load(catalogue.get(key[0]), key[1])

        return ResidentModels(loader.budget.residents, measure=measure, load=load)

    def _make_runners(self) -> dict[JobKind, Runner]:
        adapters = self._services.adapters
        inference = InferenceRunner(
            self._residents,
            adapters,
            self._services.artifacts,
            adapter_rank=self._settings.adapter_rank,
            media_limits=self._media_limits(),
        )
        return {
            "inference": inference,
            "batch": BatchRunner(
                inference,
                lambda model, task: self._residents.use((model, resident_task(task))),
                self._services.artifacts,
                rows_at_once=self._settings.sequence_slots,
            ),
            "finetune": FineTuneRunner(
                self._residents,
                self._services.files,
                adapters,
                self._services.artifacts,
                self._turns,
                self._stalls,
                adapter_rank=self._settings.adapter_rank,
                room=TrainingRoom(memory_bytes(self._device) * TRAINING_SHARE),
            ),
        }

    def _media_limits(self) -> MediaLimits:
        settings = self._settings
        return MediaLimits(
            image_pixels=settings.image_pixels,
            audio_seconds=settings.audio_seconds,
            video_seconds=settings.video_seconds,
            video_pixels=settings.image_pixels,
        )

    def _limit(self, at_once: int, kind: JobKind) -> LaneLimit:
        return LaneLimit(
            at_once,
            self._lanes(kind),
            self._consumer,
            goes_on=lambda: not self._drain_asked.is_set(),
            ring=self._ring_for_waiting,
        )

    def _lanes(self, kind: JobKind) -> list[str]:
        """The lanes of the jobs of a kind, if this worker's roles are for them."""
        role = "inference" if kind == "batch" else kind
        if role not in self._settings.roles:
            return []
        return [lane(kind, entry.name) for entry in self._services.catalogue.entries()]

    def _on_ticket(self, ticket_lane: str) -> None:
        """Runs in a pool thread: execute a job of the lane."""
        for limit in (self._shards, self._trainings):
            if ticket_lane in limit.lanes:
                limit.run(lambda claimed: self._executor.run(ticket_lane, on_claimed=claimed))
                return
        self._executor.run(ticket_lane)

    def _ring_for_waiting(self) -> None:
        """Tickets that came meanwhile were let go; ring for their jobs now."""
        try:
            self._services.jobs.ring_lost()
        except QueueUnavailable as error:
            log.warning("the reaper will ring instead: %s", error.message)

    def _announce(self) -> None:
        while not self._drain_asked.is_set():
            info = WorkerInfo(
                id=self.id,
                host=socket.gethostname(),
                pid=os.getpid(),
                device=str(self._device),
                roles=self._settings.roles,
                adapter_slots=self._settings.adapter_slots,
                resident=self._residents.names(),
                models=tuple(resident.info() for resident in self._residents.residents()),
                running=len(self._leases.running()),
                trained_seconds=self._turns.trained_seconds,
                quantum_seconds=self._turns.quantum_seconds,
                started_at=self._started_at,
            )
            try:
                if self._consumer.ready.wait(ANNOUNCE_SECONDS):
                    self._registry.announce(info, seconds=ANNOUNCED_FOR_SECONDS)
            except QueueUnavailable as error:
                log.debug("not announced: %s", error.message)
            self._drain_asked.wait(ANNOUNCE_SECONDS)

    def _ask_drain(self, _signal: int, _frame: FrameType | None) -> None:
        self._drain_asked.set()

    def _give_up(self, stalled: str) -> None:
        """What should work stands still: let others have the jobs, and be started again."""
        exit_stalled(stalled, self._leases.give_up)

    def _drain(self) -> None:
        """Stop claiming, checkpoint training, let short work end within the grace, release the rest, then exit."""
        self._drain_asked.wait()
        running = len(self._leases.running())
        log.info("draining: %d jobs have %.0f s to end", running, self._settings.drain_seconds)
        self._executor.close()
        self._consumer.pause([*self._lanes("inference"), *self._lanes("batch"), *self._lanes("finetune")])
        # These would outlast any grace; they keep a checkpoint, and go on elsewhere from there.
        self._leases.stop_all(Draining(), kind="finetune")
        self._leases.stop_all(Draining(), kind="batch")
        if not self._leases.wait_idle(self._settings.drain_seconds):
            self._leases.stop_all(Draining())
            if not self._leases.wait_idle(RELEASE_SECONDS):
                log.warning("%d jobs did not stop; their leases will run out", len(self._leases.running()))
        try:
            self._registry.withdraw(self.id)
        except QueueUnavailable as error:
            log.warning("not withdrawn: %s", error.message)
        self._residents.close()
        self._monitor.stop()
        log.info("drained")
        logging.shutdown()
        # Celery's threads pool cannot be ended in order (facts in docs/decisions/0001): the process is.
        os._exit(0)


def pace_of(settings: WorkerSettings, device: torch.device) -> Pace:
    """How training and serving share the device. A GPU runs its queues by an order of its own."""
    target = latency_target(settings)
    if device.type != "cpu" or settings.training_beside == "off":
        return TurnController(target)
    if not has_low_priority():
        log.info("threads cannot have priorities of their own here: training and serving take turns")
        return TurnController(target)
    return BesidePace(target)


def latency_target(settings: WorkerSettings) -> LatencyTarget:
    """What the settings say about training while models serve."""
    return LatencyTarget(
        slowdown=settings.serving_slowdown,
        gap_seconds=settings.serving_gap_ms / 1000,
        least_share=settings.training_share,
    )
