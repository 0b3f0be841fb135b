"""`python -m tests.chaos.hanging_worker`: the real worker, whose encoder hangs in its first forward, for ever."""

import sys
import threading
from typing import Any

from worker.__main__ import main
from worker.tasks.feature_extraction import FeatureExtraction


def hang(*_: Any) -> Any:
    threading.Event().wait()


if __name__ == "__main__":
    FeatureExtraction.forward = hang  # type: ignore[method-assign]  # the fault
    sys.exit(main())
