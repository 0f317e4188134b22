"""Kill the registered process groups when the process at the other end of stdin is gone, however it ended.

Lines on stdin: `add PID` and `drop PID`. Runs as its own program, with the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    """Follow stdin to its end, then kill what is still registered."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pids: set[int] = set()
    for line in sys.stdin:
        verb, pid = line.split()
        (pids.add if verb == "add" else pids.discard)(int(pid))
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
