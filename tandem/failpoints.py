"""Named instants at which a test can let this process die, as `kill -9` would; without the variable nothing happens.

`TANDEM_FAILPOINT=claim.after:3` kills the process at the third passage of `claim.after`.
"""

import os
import signal
import threading

VARIABLE = "TANDEM_FAILPOINT"

FAILPOINTS = (
    "submit.before",
    "submit.after",
    "claim.before",
    "claim.after",
    "renew.before",
    "renew.after",
    "artifact.before",
    "artifact.after",
    "publish.before",
    "publish.after",
    "finish.before",
    "finish.after",
    "release.before",
    "release.after",
)
"""Every instant that has a name."""

_armed, _, _passage = os.environ.get(VARIABLE, "").partition(":")
_left = int(_passage or 1)
_lock = threading.Lock()


def failpoint(name: str) -> None:
    """Die here, if this is the passage that the test has chosen."""
    if _armed != name:
        return
    global _left
    with _lock:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
