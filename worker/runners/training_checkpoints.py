"""The checkpoints of a job's training: kept to go on from, and published to be served by name."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tandem.adapters import AdapterManifest, AdapterStore
from tandem.artifacts import ArtifactStore
from tandem.errors import QueueUnavailable, UnknownArtifact
from worker.attempt import Attempt
from worker.training.checkpoint import CHECKPOINT_FILES

log = logging.getLogger(__name__)

RECORD_SECONDS = 5.0
"""How long a stopping training tries to record its last checkpoint while Redis is away. Without it the job goes on
from the one before, so this is shorter than what a drain allows runners to end."""
RECORD_RETRY_SECONDS = 0.25
"""Between these tries: a server that fails over is back after seconds."""
CHECKPOINT_MARK = ":ckpt-step-"
"""Between an adapter's id and the number of the step, in the id of a checkpoint's adapter."""


class JobCheckpoints:
    """The checkpoints of one attempt's training: files in the artifact store, their digests in the job's record."""

    def __init__(self, attempt: Attempt, artifacts: ArtifactStore) -> None:
        self._attempt = attempt
        self._artifacts = artifacts
        self._unrecorded: dict[str, Any] | None = None

    def fetch(self, folder: Path) -> Path | None:
        """Write what an earlier attempt has left into a new folder; None if it left nothing that is still there."""
        checkpoint = self._attempt.job.checkpoint
        if checkpoint is None:
            return None
        folder.mkdir()
        try:
            # Only the files that a checkpoint has: names in a record choose no path here.
            for name in CHECKPOINT_FILES:
                self._artifacts.fetch(checkpoint["files"][name], folder / name)
        except (KeyError, UnknownArtifact) as error:
            log.warning("%s: its checkpoint is gone: %s", self._attempt.job.id, error)
            self._attempt.report(
                "warning", {"message": f"the training starts anew, without its checkpoint: {error} is gone"}
            )
            return None
        return folder

    def store(self, folder: Path, step: int) -> None:
        """Keep a checkpoint in place of the one before.

        Raises Superseded, QueueUnavailable, and whatever the artifact store's file system does.
        """
        files = {name: self._artifacts.put_file(folder / name).digest for name in CHECKPOINT_FILES}
        self._unrecorded = {"step": step, "files": files}
        self._record()

    def record_late(self) -> None:
        """Before the job goes back to its queue: record the last checkpoint if Redis was away when it was stored.

        Raises Superseded.
        """
        give_up_at = time.monotonic() + RECORD_SECONDS
        while self._unrecorded is not None:
            try:
                self._record()
            except QueueUnavailable as error:
                if time.monotonic() >= give_up_at:
                    log.warning("%s: its last checkpoint is not recorded: %s", self._attempt.job.id, error.message)
                    return
                time.sleep(RECORD_RETRY_SECONDS)  # nothing signals that Redis is back

    def _record(self) -> None:
        assert self._unrecorded is not None
        self._attempt.save_checkpoint(self._unrecorded)
        self._attempt.report("checkpoint", {"step": self._unrecorded["step"]})
        self._unrecorded = None


class PublishedCheckpoints:
    """The checkpoints of one training that are adapters of their own: `<adapter>:ckpt-step-<number>`."""

    def __init__(
        self,
        adapters: AdapterStore,
        adapter: str,
        attempt: Attempt,
        *,
        limit: int | None,
        manifest: Callable[[str, Path, dict[str, Any]], AdapterManifest],
    ) -> None:
        """`adapter` is the id of the training's own. `manifest(id, folder, metrics)` describes the adapter in a
        folder. Beyond `limit` the oldest are withdrawn, but never the one with the lowest validation loss."""
        self._adapters = adapters
        self._prefix = f"{adapter}{CHECKPOINT_MARK}"
        self._attempt = attempt
        self._limit = limit
        self._manifest = manifest

    def publish(self, folder: Path, step: int, events: Sequence[dict[str, Any]]) -> None:
        """Publish the adapter in `folder`, once: an attempt that repeats the step finds what stands.

        Raises QueueUnavailable, and whatever the artifact store's file system does.
        """
        self._attempt.check()
        manifest = self._manifest(f"{self._prefix}{step}", folder, _metrics_at(step, events))
        self._adapters.publish(manifest)
        self._attempt.report("published_checkpoint", {"step": step, "adapter": manifest.id})
        self._withdraw_old()

    def listed(self) -> list[dict[str, Any]]:
        """What is published of this training, by any of its attempts, in the order of the steps."""
        return [
            {"step": self._step(one), "adapter": one.id, "metrics": one.metrics}
            for one in sorted(self._published(), key=self._step)
        ]

    def _withdraw_old(self) -> None:
        if self._limit is None:
            return
        published = sorted(self._published(), key=self._step)
        losses = {one.id: one.metrics["valid_loss"] for one in published if "valid_loss" in one.metrics}
        best = min(losses, key=lambda name: losses[name], default=None)
        old = [one.id for one in published[:-1] if one.id != best]  # the newest stays too
        for name in old[: max(len(published) - self._limit, 0)]:
            self._adapters.delete(name)

    def _published(self) -> list[AdapterManifest]:
        return [one for one in self._adapters.list() if one.id.startswith(self._prefix)]

    def _step(self, manifest: AdapterManifest) -> int:
        return int(manifest.id.removeprefix(self._prefix))


def _metrics_at(step: int, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is known of a step, named as OpenAI names it: `train_loss`, `valid_loss` and the like."""
    metrics: dict[str, Any] = {"step": step}
    for event in events:
        prefix = "train" if event["type"] == "metrics" else "valid"
        for name, value in event.items():
            if name == "loss" or "accuracy" in name or "accuracies" in name:
                metrics[f"{prefix}_{name}"] = value
    return metrics
