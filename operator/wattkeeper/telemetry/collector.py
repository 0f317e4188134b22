"""The thread that keeps the latest good snapshot of the fleet.

One collection at a time, never overlapping: a slow source makes the next one later, not parallel. A failed collection
leaves the last good snapshot in place; its age, and with it that of every reading, keeps growing. A few snapshots
before it are kept without their histograms, for readers that come by less often than is collected.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from wattkeeper.domain.errors import TelemetryError
from wattkeeper.telemetry.source import MetricsSource, Snapshot

_LOGGER = logging.getLogger(__name__)

_EARLIER = 6
"""Snapshots kept beside the last one: as many as are collected between two passes of the fleet loop, and some."""


class Collector:
    """Collects from `source` every `interval_seconds` in its own thread, between `start` and `stop`.

    `on_snapshot` (optional) is called in that thread with every good snapshot. `clock` gives Unix seconds.
    """

    def __init__(
        self,
        source: MetricsSource,
        interval_seconds: float = 5.0,
        *,
        clock: Callable[[], float] = time.time,
        on_snapshot: Callable[[Snapshot], None] | None = None,
    ) -> None:
        if interval_seconds <= 0:
            raise ValueError(f"the collect interval must be positive, not {interval_seconds} s")
        self._source = source
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._on_snapshot = on_snapshot
        self._stopping = threading.Event()
        self._collecting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._latest: Snapshot | None = None
        self._earlier: deque[Snapshot] = deque(maxlen=_EARLIER)
        self._last_error: str | None = None
        self._last_duration_seconds: float | None = None
        self._attempts = 0

    def latest(self) -> Snapshot | None:
        """The last good snapshot, however old; None before the first."""
        return self._latest

    def since(self, time_seconds: float) -> tuple[Snapshot, ...]:
        """Good snapshots taken after `time_seconds`, in their order; all but the last one without histograms."""
        latest = self._latest
        if latest is None or latest.time_seconds <= time_seconds:
            return ()
        earlier = (shown for shown in tuple(self._earlier) if time_seconds < shown.time_seconds < latest.time_seconds)
        return (*earlier, latest)

    @property
    def last_error(self) -> str | None:
        """Why the latest collection failed; None where it succeeded or none was made yet."""
        return self._last_error

    @property
    def last_duration_seconds(self) -> float | None:
        """How long the latest collection took, good or bad."""
        return self._last_duration_seconds

    @property
    def attempts(self) -> int:
        """Collections finished since the start, good or bad."""
        return self._attempts

    def age_seconds(self, now_seconds: float) -> float | None:
        """Age of the last good snapshot; None before the first."""
        latest = self._latest
        return None if latest is None else max(0.0, now_seconds - latest.time_seconds)

    def collect_once(self) -> Snapshot | None:
        """Collect now, in the calling thread; None where that failed (`last_error` says why)."""
        with self._collecting:
            began = time.monotonic()
            try:
                snapshot = self._source.collect(self._clock())
                if self._on_snapshot is not None:
                    self._on_snapshot(snapshot)
            except TelemetryError as error:
                if self._last_error is None:
                    _LOGGER.warning("metrics are not available: %s", error)
                self._last_error = str(error)
                return None
            except Exception as error:
                _LOGGER.exception("collecting metrics failed in an unexpected way")
                self._last_error = f"unexpected {type(error).__name__}: {error}"
                return None
            finally:
                self._last_duration_seconds = time.monotonic() - began
                self._attempts += 1
            if self._last_error is not None:
                _LOGGER.info("metrics are available again")
            if self._latest is not None:
                self._earlier.append(_slimmed(self._latest))
            self._latest, self._last_error = snapshot, None
            return snapshot

    def start(self) -> None:
        """Start the thread; it collects at once and then at every interval."""
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("the collector runs already")
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="wattkeeper-collector", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 5.0) -> bool:
        """End the thread; True where it ended in time (a query in flight may hold it up to its own timeout)."""
        self._stopping.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            self.collect_once()
            # A source slower than the interval still gets a rest between two collections.
            due = max(due + self._interval_seconds, time.monotonic() + 0.2 * self._interval_seconds)
            self._stopping.wait(due - time.monotonic())


def _slimmed(snapshot: Snapshot) -> Snapshot:
    """Without what only the newest snapshot is asked for."""
    pods = {
        key: replace(reading, ttft_seconds=None, tpot_seconds=None, prompt_tokens=None, output_tokens=None)
        for key, reading in snapshot.pods.items()
    }
    return replace(snapshot, pods=pods, gpus={})
