"""Becomes another program that cannot outlive the process that started it (on Linux).

    python -I -S tied_process.py <parent's process id> <program> <argument>…

The kernel kills the program when the thread that started it ends (prctl(2), PR_SET_PDEATHSIG): children are started
from the supervisor's main thread, and even a SIGKILL of the supervisor leaves none. This is a program of its own
because the request must be made after the fork, where Python code is safe only in a new process. It imports nothing
but the standard library, so that it adds little to the start.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""


def main() -> None:
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        if os.getppid() != int(parent):
            sys.exit("the process that started this one has ended already")
    # Python ignores these two for itself; a program that it becomes must not inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execv(command[0], command)  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main()
