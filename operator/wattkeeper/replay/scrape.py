"""Metrics as they reach a policy in life: scraped now and then, in buckets, late, and with gaps.

Every pod's and every node's page is taken once per interval, as the engine and the GPU exporter serve it at that
moment, and read by the code that reads real pages (`telemetry.pages`). A page may be lost; during an outage none comes.
What was read is shown to policies `delay_seconds` later.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattkeeper.telemetry.pages import PageReadings, ScrapeTarget
from wattkeeper.telemetry.source import Snapshot
from wattkeeper.twin.exposition import dcgm_text, vllm_text
from wattkeeper.twin.fleet import Fleet, Service

EPOCH_SECONDS = 1_760_000_000.0
"""Unix time of the beginning of every replay."""
_KEPT = 12


@dataclass(frozen=True, kw_only=True)
class ScrapeSettings:
    """How metrics come."""

    interval_seconds: float = 15.0
    delay_seconds: float = 1.0
    """From the scrape until policies see it."""
    lost: float = 0.0
    """Share of pages that are lost."""
    outages: tuple[tuple[float, float], ...] = ()
    """(from, until) in seconds since the trace began: nothing is scraped."""
    rate_window_seconds: float = 60.0
    length_window_seconds: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.interval_seconds < math.inf or not 0.0 <= self.delay_seconds < math.inf:
            raise ValueError("the scrape interval must be positive and the delay must not be negative")
        if not 0.0 <= self.lost < 1.0:
            raise ValueError(f"the share of lost pages must be in [0, 1), not {self.lost}")
        if any(not 0.0 <= begin < end for begin, end in self.outages):
            raise ValueError(f"outages must be pairs of ascending seconds: {self.outages}")


class Pipeline:
    """Scrapes one service of a fleet; policies ask it for snapshots."""

    def __init__(self, fleet: Fleet, service: Service, settings: ScrapeSettings) -> None:
        self._fleet = fleet
        self._service = service
        self._settings = settings
        self._readings = PageReadings(
            rate_window_seconds=settings.rate_window_seconds, length_window_seconds=settings.length_window_seconds
        )
        self._rng = np.random.default_rng((settings.seed, 41))
        self._shown: deque[tuple[float, Snapshot]] = deque(maxlen=_KEPT)
        self.error: str | None = None
        """Why the last collection failed; None: it did not."""
        self.lost_pages = 0

    def scrape(self, now_seconds: float) -> None:
        """Take all pages now. `now_seconds` counts from the beginning of the trace."""
        if any(begin <= now_seconds < end for begin, end in self._settings.outages):
            self.error = "the metrics server does not answer"
            return
        self.error = None
        unix = EPOCH_SECONDS + now_seconds
        members = [member for member in self._service.members.values() if member.replica is not None]
        pages: list[tuple[ScrapeTarget, str]] = []
        for member in members:
            if not self._is_lost() and member.replica is not None:
                target = ScrapeTarget(url="", namespace=member.key[0], pod=member.key[1])
                pages.append((target, vllm_text(member.replica, model_name=member.hardware.model)))
        for node, gpus in self._fleet.inventory.nodes.items():
            if not self._is_lost():
                pages.append((ScrapeTarget(url=node, role="gpu"), dcgm_text([gpu.sample() for gpu in gpus])))
        targets = [ScrapeTarget(url="", namespace=member.key[0], pod=member.key[1]) for member in members]
        targets += [ScrapeTarget(url=node, role="gpu") for node in self._fleet.inventory.nodes]
        self._readings.keep_only(targets)
        for target, text in pages:
            self._readings.take(target, text, unix)
        self._shown.append((now_seconds + self._settings.delay_seconds, self._readings.snapshot(unix)))

    def latest(self, now_seconds: float) -> Snapshot | None:
        """What is known by now."""
        return next((shown for at, shown in reversed(self._shown) if at <= now_seconds), None)

    def since(self, now_seconds: float, unix_seconds: float) -> Sequence[Snapshot]:
        """What became known by now and was taken after a Unix time, in its order."""
        return [shown for at, shown in self._shown if at <= now_seconds and shown.time_seconds > unix_seconds]

    def _is_lost(self) -> bool:
        lost = self._settings.lost > 0.0 and float(self._rng.random()) < self._settings.lost
        self.lost_pages += lost
        return lost
