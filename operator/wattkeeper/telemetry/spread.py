"""How evenly a router spreads requests over replicas: which pods get next to none.

Arrivals of a pod are exact between two scrapes: growth of its finished-request counter plus change of what is running
and waiting. A router that follows prefixes, sessions or adapters may leave replicas without work, however many there
are; then more of them help nobody.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from wattkeeper.telemetry.source import Snapshot

WINDOW_SECONDS = 120.0
"""Over which arrivals are compared."""
_WHOLE = 0.8
"""Share of the window that a pod must have been watched for; its newest reading may be a scrape old."""
_LEAST_FAIR_SHARE = 12.0
"""Arrivals per pod below which nothing is said: by chance alone one pod in 10,000 of an even spread looks unused."""
_UNUSED_SHARE = 0.1
"""Of the fair share: below it a pod counts as unused."""


class _Mark(NamedTuple):
    """Where a pod's counts stood."""

    time_seconds: float
    finished: float
    arrived: float


class LoadSpread:
    """Arrivals by pod of one service over the last minutes; feed it every snapshot. Memory is bounded by the window."""

    def __init__(self) -> None:
        self._marks: dict[str, deque[_Mark]] = {}

    def update(self, *, namespace: str, pods: Iterable[str], snapshot: Snapshot) -> None:
        """Take a snapshot in; pods that are gone are forgotten, restarted ones start afresh."""
        kept: dict[str, deque[_Mark]] = {}
        for pod in pods:
            marks = self._marks.get(pod, deque())
            reading = snapshot.pods.get((namespace, pod))
            if reading is not None and reading.finished_requests is not None:
                time = snapshot.time_seconds - reading.age_seconds
                finished, in_system = reading.finished_requests, (reading.running or 0.0) + (reading.waiting or 0.0)
                if marks and finished < marks[-1].finished:
                    marks = deque()
                if not marks or time > marks[-1].time_seconds:
                    marks.append(_Mark(time_seconds=time, finished=finished, arrived=finished + in_system))
            while len(marks) > 2 and marks[1].time_seconds <= snapshot.time_seconds - WINDOW_SECONDS:
                marks.popleft()
            kept[pod] = marks
        self._marks = kept

    @property
    def used_and_unused(self) -> tuple[int, int] | None:
        """Pods with and without work, of those watched for the whole window; None where too little was seen to tell.

        Without work is what got less than a tenth of an even share.
        """
        judged = [
            marks
            for marks in self._marks.values()
            if marks and marks[-1].time_seconds - marks[0].time_seconds >= _WHOLE * WINDOW_SECONDS
        ]
        since = max((marks[0].time_seconds for marks in judged), default=0.0)
        counted = [max(0.0, marks[-1].arrived - _at(marks, since)) for marks in judged]
        fair = sum(counted) / len(counted) if counted else 0.0
        if fair < _LEAST_FAIR_SHARE:
            return None
        unused = sum(count < _UNUSED_SHARE * fair for count in counted)
        return len(counted) - unused, unused


def _at(marks: Iterable[_Mark], time_seconds: float) -> float:
    """What had arrived at the first mark not before a time: what came before the newest pod did is not compared."""
    return next(mark.arrived for mark in marks if mark.time_seconds >= time_seconds)
