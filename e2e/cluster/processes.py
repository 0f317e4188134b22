"""Child processes that cannot outlive their owner, and free loopback ports for them."""

from __future__ import annotations

import atexit
import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

# Below the range that the kernel hands out to outgoing connections, so that a port tested as free stays free.
PORTS = range(20_000, 32_000)
LOG_TAIL_LINES = 15


class ProcessExitedError(RuntimeError):
    """A program that should keep running has ended; the message carries the end of its log."""

    def __init__(self, *, name: str, code: int, log: str) -> None:
        super().__init__(f"{name} ended with code {code}; the end of its log:\n{log}")
        self.port_taken = "address already in use" in log


def free_port() -> int:
    """A loopback TCP port that nothing listens on."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"no free port found between {PORTS.start} and {PORTS.stop}")


class Processes:
    """A group of background programs, each with a log file `<name>.log` in `directory`.

    They end with stop(), at interpreter exit, and also when this process is killed (a small reaper process sees to
    that). With detached=True they stay until somebody kills their pids.
    """

    def __init__(self, *, directory: pathlib.Path, detached: bool = False) -> None:
        self._directory = directory
        self._detached = detached
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._reaper: subprocess.Popen[str] | None = None

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: process.pid for name, process in self._running.items()}

    def start(self, name: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        """Start a program; its output goes to the log file."""
        if not self._detached and self._reaper is None:
            self._start_reaper()
        with (self._directory / f"{name}.log").open("ab") as log:
            self._running[name] = process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                env={**os.environ, "HOME": str(self._directory), **(environment or {})},
                start_new_session=True,
            )
        self._tell_reaper("add", process.pid)

    def check(self) -> None:
        """Raise ProcessExitedError if one of the programs has ended."""
        for name, process in self._running.items():
            if (code := process.poll()) is not None:
                raise ProcessExitedError(name=name, code=code, log=self.log_tail(name))

    def log_tail(self, name: str) -> str:
        """The last lines that the program wrote."""
        text = (self._directory / f"{name}.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    def log(self, name: str) -> str:
        """All that the program wrote."""
        return (self._directory / f"{name}.log").read_text(errors="replace")

    def runs(self, name: str) -> bool:
        """Whether the program was started and has not ended."""
        return name in self._running and self._running[name].poll() is None

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a program (and not to its children)."""
        self._running[name].send_signal(number)

    def wait(self, name: str, *, timeout_seconds: float) -> int:
        """Wait until a program has ended by itself, and return its exit code (negative: the signal that ended it).

        Raises:
            TimeoutError: it still runs.

        """
        try:
            code = self._running[name].wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{name} still runs after {timeout_seconds:g} s:\n{self.log_tail(name)}") from None
        self._tell_reaper("drop", self._running.pop(name).pid)
        return code

    def stop(self, name: str | None = None) -> None:
        """Kill one program or all of them, and wait until they are gone. Nothing they hold is worth a slow goodbye."""
        names = list(self._running) if name is None else [name]
        ending = [self._running.pop(one) for one in names if one in self._running]
        for process in ending:
            kill_group(process.pid)
        for process in ending:
            process.wait()
            self._tell_reaper("drop", process.pid)
        if name is None:
            self._stop_reaper()

    def _start_reaper(self) -> None:
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(pathlib.Path(__file__).with_name("reaper.py"))],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.stop)

    def _tell_reaper(self, verb: str, pid: int) -> None:
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.write(f"{verb} {pid}\n")
            self._reaper.stdin.flush()

    def _stop_reaper(self) -> None:
        if self._reaper is not None:
            self._reaper.communicate()
            self._reaper = None
            atexit.unregister(self.stop)


def kill_group(pid: int) -> None:
    """Kill a process that leads its own group, and the group; one that is already gone is fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def wait_gone(pids: list[int], *, timeout_seconds: float = 10.0) -> None:
    """Wait until none of these processes runs (zombies do not count); raises TimeoutError naming those that do."""
    deadline = time.monotonic() + timeout_seconds
    while alive := [pid for pid in pids if is_running(pid)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"still running after {timeout_seconds:g} s: {alive}")
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        if pathlib.Path("/proc/self").exists():
            return False
        try:  # no /proc on this system
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return state != "Z"
