"""What an instant query would return now, from the last collection that arrived.

Source: Prometheus documentation, "Querying basics", section "Staleness": a series ends at the first scrape that returns
no sample of it. So a reading older than two scrape intervals, of which one must then have failed, is no longer there.
A snapshot that no other has followed for as long is a source that does not answer. Queries over a window (rates) go on
while the window has samples.
"""

from collections.abc import Mapping

from wattkeeper.domain.observation import PodReading
from wattkeeper.rivals.types import Look
from wattkeeper.telemetry.source import PodKey

STALE_SECONDS = 30.0
"""Two scrape intervals of 15 s."""

Readings = Mapping[PodKey, PodReading]


class Query:
    """Ages snapshots by when they were first seen, so that no clock of the source needs to agree with the trace's."""

    def __init__(self, *, stale_seconds: float = STALE_SECONDS) -> None:
        self._stale = stale_seconds
        self._snapshot_seconds: float | None = None
        self._seen_seconds = 0.0

    def readings(self, look: Look) -> Readings | None:
        """Fresh readings of the service's pods, draining ones included; None: the source does not answer."""
        if look.snapshot is None:
            return None
        if look.snapshot.time_seconds != self._snapshot_seconds:
            self._snapshot_seconds, self._seen_seconds = look.snapshot.time_seconds, look.time_seconds
        behind = look.time_seconds - self._seen_seconds
        if behind > self._stale:
            return None
        pods = look.snapshot.pods
        return {
            key: pods[key]
            for key in (*look.ready_pods, *look.starting_pods, *look.draining_pods)
            if key in pods and pods[key].age_seconds + behind <= self._stale
        }
