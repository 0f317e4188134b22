"""A child process that runs replays, seen from the operator: start, one job at a time, and how it ends.

It is an interpreter of its own rather than one of `multiprocessing`, which would import the parent's main module: the
whole operator. Threads and signals of the operator never reach it, and it ends when the operator does.
"""

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import wattkeeper
from wattkeeper.domain.replay import ReplayResult
from wattkeeper.queueing.replay import ReplayJob

_STOP_SECONDS = 5.0
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerError(Exception):
    """The process died or did not answer in time; it is gone now."""


class Worker:
    """One process. Used by one thread."""

    def __init__(self, *, command: tuple[str, ...] = ("-m", "wattkeeper.controller.replay_worker")) -> None:
        mine, theirs = socket.socketpair()
        paths = [str(Path(wattkeeper.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, *command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment,
                start_new_session=True,
            )
        self._link = Connection(mine.detach())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def run(self, job: ReplayJob, *, timeout_seconds: float) -> ReplayResult:
        """Have a job done. Raises WorkerError, after which the worker is of no use."""
        try:
            self._link.send(job)
            if not self._link.poll(timeout_seconds):
                self.end()
                raise WorkerError(f"a replay did not end within {timeout_seconds:.0f} s")
            result: ReplayResult = self._link.recv()
        except (EOFError, OSError) as error:
            self.end()
            raise WorkerError(f"the replay worker ended with code {self._process.returncode}") from error
        return result

    def end(self) -> None:
        """End the process; whoever waits for it in `run` gets a WorkerError. Safe from another thread."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """End the process and give everything back. Safe to call twice."""
        self.end()
        self._link.close()
