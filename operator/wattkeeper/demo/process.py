"""The real operator as a process of its own, pointed at the embedded API and the twin's metrics."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from wattkeeper.domain.errors import WattkeeperError

STOP_SECONDS = 15.0
_SHOWN_LINES = 12


class Operator(Protocol):
    """What the demo needs of whatever decides."""

    def start(self) -> None:
        """Begin to act."""

    def check(self) -> None:
        """Raise WattkeeperError where it no longer acts."""

    def stop(self) -> int | None:
        """End; the exit code where there is one."""


class OperatorProcess:
    """`wattkeeper run` with its log in a file."""

    def __init__(self, *, arguments: list[str], log: Path) -> None:
        self._arguments, self._log = arguments, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", "wattkeeper", "run", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """Raise WattkeeperError where it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            tail = self._log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
            raise WattkeeperError(
                f"the operator ended with code {self._process.returncode}; the last lines of {self._log}:\n"
                + "\n".join(tail)
            )

    def stop(self) -> int | None:
        """Ask it to end, wait, and return its exit code; killed where it does not end in time."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode
