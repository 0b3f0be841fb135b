"""The engine's thread: steps while there is work, sleeps while there is none."""

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from tandem.errors import Draining
from worker.engine.engine import Engine
from worker.engine.sequence import Sequence

log = logging.getLogger(__name__)


class EngineLoop:
    """Runs one engine in a thread of its own. Started once and stopped once."""

    def __init__(
        self, engine: Engine, *, serving_turn: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """Each step runs inside `with serving_turn():`, where training hands over the device."""
        self.engine = engine
        self._serving_turn = serving_turn
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, sequence: Sequence) -> None:
        """Hand a sequence to the engine. Raises what `Engine.submit` raises, and Draining after `stop`."""
        with self._changed:
            if self._stopping:
                raise Draining
            self.engine.submit(sequence)
            self._changed.notify()

    def is_busy(self) -> bool:
        """Whether there is work: then `progress` must grow. Waits for no lock: a hung thread may hold it."""
        return self.engine.has_work()

    def progress(self) -> int:
        """A count that grows with every step that does something (`Engine.progress`)."""
        return self.engine.progress

    def stop(self) -> None:
        """End the thread after its current step; whatever is left fails with `Draining`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self.engine.abandon(Draining())

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                with self._serving_turn():
                    self.engine.step()
            except Exception as error:
                # Engine.step keeps a forward's failure to its sequences; what arrives here is a defect of ours.
                log.exception("a step failed outside its forward; all sequences fail, the engine goes on")
                self.engine.abandon(error)

    def _wait_for_work(self) -> bool:
        """Returns when there is work (True) or the loop must end (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self.engine.has_work())
            return not self._stopping
