"""A thread that computes with what others leave of the processors."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from worker.training.beside_pace import LOWEST

T = TypeVar("T")


class LowPriorityThread:
    """Runs one call at a time in a thread of its own, at a higher nice value and with half of torch's threads.

    Half of them, since a product that all threads compute waits for the one that was displaced. On two processors the
    shares that both had of their speeds alone added up to 1.0 to 1.2 with two threads each, and to 1.1 to 1.3 where
    training had one (docs/decisions/0018-training-beside-serving.md).

    torch's threads inherit the nice value of the one that starts them. An unprivileged thread may raise its own, and
    never lower it: where a lower one is asked for, the thread is replaced.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._nice = 0

    def run(self, work: Callable[[], T], *, nice: int) -> T:
        """Blocks until it is done. `nice`: 0 to 19 above that of the calling thread, or LOWEST. Raises what `work`
        raises."""
        if self._executor is not None and nice != self._nice:
            self.close()
        if self._executor is None:
            half = max(1, torch.get_num_threads() // 2)
            self._nice = nice
            self._executor = ThreadPoolExecutor(1, "low-priority", initializer=_begin, initargs=(nice, half))
        return self._executor.submit(work).result()

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None


def has_low_priority() -> bool:
    """Whether threads have nice values of their own here: on Linux, unless a sandbox forbids it."""
    if not hasattr(os, "SCHED_IDLE"):
        return False
    with ThreadPoolExecutor(1, "low-priority-trial") as executor:
        return executor.submit(_can_lower_priority).result()


def _can_lower_priority() -> bool:
    try:
        _lower_priority(LOWEST)
    except OSError:
        return False
    return os.sched_getscheduler(0) == os.SCHED_IDLE


def _begin(nice: int, threads: int) -> None:
    _lower_priority(nice)
    # torch keeps the number for each thread, and one more for those that come later, which are not meant.
    total = torch.get_num_threads()
    torch.set_num_threads(threads)
    restorer = threading.Thread(target=torch.set_num_threads, args=(total,))
    restorer.start()
    restorer.join()


def _lower_priority(nice: int) -> None:
    """Of this thread, which has begun with the nice value of the one that started it."""
    if nice >= LOWEST:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(own + nice, LOWEST - 1))
