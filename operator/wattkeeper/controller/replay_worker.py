"""The process that replays: jobs come in and results go out over a socket given by its number, until that closes.

Run as `python -m wattkeeper.controller.replay_worker FD`; it loads the simulator and nothing of Kubernetes.
"""

import os
import sys
from multiprocessing.connection import Connection

from wattkeeper.queueing import replay

_NICENESS = 10
"""Replays are never urgent: on a busy machine the fleet loop goes first."""


def serve(descriptor: int) -> None:
    """Answer jobs one by one."""
    os.nice(_NICENESS)
    link = Connection(descriptor)
    while True:
        try:
            link.send(replay.run(link.recv()))
        except (EOFError, OSError):  # the operator has ended
            return


if __name__ == "__main__":
    serve(int(sys.argv[1]))
