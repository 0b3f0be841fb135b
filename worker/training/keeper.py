"""When a training is saved, and who gets its checkpoint."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor
from transformers import TrainerState

from tandem.errors import AttemptStopped
from worker.training.adapter import save_adapter
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
        hand_over_adapter: Callable[[Path, int, Sequence[dict[str, Any]]], None] | None = None,
        save_steps: int | None,
        save_seconds: float = SAVE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hand_over(folder, step)` is done with the folder, which lies in `scratch`, when it returns.

        So is `hand_over_adapter(folder, step, events)` with a folder as PEFT reads it; `events` are the metrics and
        evaluations of that step. None: checkpoints are not to be used as adapters.
        """
        self._subject = subject
        self._scratch = scratch
        self._hand_over = hand_over
        self._hand_over_adapter = hand_over_adapter
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

    def keep(self, course: Course, tensors: Mapping[str, Tensor], trainer_state: TrainerState) -> bool:
        """Write a checkpoint and hand it over; answers whether that succeeded.

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
            return False
        else:
            self._kept = (course.step, course.evaluation_due)
            return True
        finally:
            self._last_try = self._clock()
            shutil.rmtree(folder, ignore_errors=True)

    def write_adapter(self, model: PeftModel, step: int) -> Path | None:
        """The model's adapter in a new folder, if it is wanted. Training must hold the device."""
        if self._hand_over_adapter is None:
            return None
        folder = self._scratch / f"adapter-{step}"
        save_adapter(model, folder)
        return folder

    def hand_over_adapter(self, folder: Path, step: int, events: Sequence[dict[str, Any]]) -> None:
        """Let a checkpoint be used as an adapter. A failure ends the training no more than one of `keep` does."""
        assert self._hand_over_adapter is not None
        try:
            self._hand_over_adapter(folder, step, events)
        except AttemptStopped:
            raise
        except Exception as error:  # as in `keep`
            log.warning("the adapter of step %d is not published", step, exc_info=True)
            message = f"the adapter of step {step} could not be published: {error}"
            self._on_event({"type": "warning", "step": step, "message": message})
        finally:
            shutil.rmtree(folder, ignore_errors=True)
