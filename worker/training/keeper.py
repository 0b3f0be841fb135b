"""When a training is saved, and who gets its checkpoint."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerState

from tandem.errors import AttemptStopped
from worker.training.checkpoint import Course, Subject, write_checkpoint

log = logging.getLogger(__name__)

SAVE_SECONDS = 300.0
"""Between checkpoints when no number of steps is asked for: a lost worker costs a training five minutes at most, and
a checkpoint of some MB costs far less than a hundredth of them."""


class CheckpointKeeper:
    """Writes checkpoints when they are due, and hands each to whoever stores it."""

    def __init__(
        self,
        subject: Subject,
        scratch: Path,
        hand_over: Callable[[Path, int], None],
        on_event: Callable[[dict[str, Any]], None],
        *,
        save_steps: int | None,
        save_seconds: float = SAVE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hand_over(folder, step)` is done with the folder, which lies in `scratch`, when it returns."""
        self._subject = subject
        self._scratch = scratch
        self._hand_over = hand_over
        self._on_event = on_event
        self._save_steps = save_steps
        self._save_seconds = save_seconds
        self._clock = clock
        self._kept: tuple[int, bool] | None = None
        self._last_try = clock()

    def goes_on_from(self, course: Course) -> None:
        """What a training resumes from is kept already."""
        self._kept = (course.step, course.evaluation_due)

    def is_due(self, step: int) -> bool:
        """Whether the end of this optimizer step is one at which to save."""
        if step == 0 or (self._kept is not None and self._kept[0] == step):
            return False
        by_steps = self._save_steps is not None and step % self._save_steps == 0
        return by_steps or self._clock() - self._last_try >= self._save_seconds

    def has(self, step: int, evaluation_due: bool) -> bool:
        """Whether exactly this point of the training is kept."""
        return self._kept == (step, evaluation_due)

    def keep(self, course: Course, tensors: Mapping[str, Tensor], trainer_state: TrainerState) -> None:
        """Write a checkpoint and hand it over.

        A checkpoint that cannot be kept, since a disk is full or a server away, is no reason to end the training:
        it is logged and reported as a `warning`. Only what stops the attempt itself (AttemptStopped) is raised.
        """
        folder = self._scratch / f"checkpoint-{course.step}"
        try:
            write_checkpoint(folder, self._subject, course, tensors, trainer_state)
            self._hand_over(folder, course.step)
        except AttemptStopped:
            raise
        except Exception as error:  # the storage behind `hand_over` has errors of its own kinds
            log.warning("the checkpoint of step %d is not kept", course.step, exc_info=True)
            self._on_event(
                {
                    "type": "warning",
                    "step": course.step,
                    "message": f"the checkpoint of step {course.step} could not be kept: {error}",
                }
            )
        else:
            self._kept = (course.step, course.evaluation_due)
        finally:
            self._last_try = self._clock()
            shutil.rmtree(folder, ignore_errors=True)
