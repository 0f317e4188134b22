"""The operator itself as a policy: its own fleet loop, ticked in simulated time on a simulated cluster.

Nothing of it is simplified: the loop resolves objects, observes the collector's snapshots, forecasts, learns, plans,
acts and writes status as it does in a cluster. What differs: watches are never late, the replay stage works in the
loop's own process between two passes (`Replays.work_off`), and nobody else writes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.controller.act import Actor
from wattkeeper.controller.cache import KINDS, ClusterCache
from wattkeeper.controller.clock import Clock
from wattkeeper.controller.events import Recorder
from wattkeeper.controller.kube import Kube, Object
from wattkeeper.controller.loop import FleetLoop
from wattkeeper.controller.measure import Measurements
from wattkeeper.controller.metrics import OperatorMetrics
from wattkeeper.controller.replays import Replays
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.domain.plan import Plan
from wattkeeper.energy.model import EnergyModel
from wattkeeper.replay.cluster import SimulatedCluster
from wattkeeper.replay.objects import InProcessApi
from wattkeeper.replay.result import Note
from wattkeeper.replay.stage import EPOCH_SECONDS
from wattkeeper.rivals.types import Decision, Look
from wattkeeper.telemetry.collector import Collector
from wattkeeper.twin.deployment import Deployment

if TYPE_CHECKING:
    from kubernetes import client


@dataclass(frozen=True, kw_only=True)
class PlannerSetup:
    """What the operator is given. Manifests as in a cluster."""

    name: str
    service: Object
    workload: Object
    profiles: tuple[Object, ...] = ()
    energy: EnergyModel
    settings: OperatorSettings


class PlannerPolicy:
    """One operator that keeps one service. Call `close` at the end: its writer threads end then."""

    def __init__(self, setup: PlannerSetup, deployment: Deployment, collector: Collector) -> None:
        self.name = setup.name
        self.period_seconds = setup.settings.tick_seconds
        self._now_seconds = EPOCH_SECONDS
        self.cluster = SimulatedCluster(
            deployment, service=setup.service, workload=setup.workload, profiles=setup.profiles
        )
        objects = self.cluster.objects
        kube = Kube(api=cast("client.ApiClient", InProcessApi(objects)))
        cache = ClusterCache(kube=kube, shelves={kind: objects.shelves[kind.plural] for kind in KINDS})
        metrics = OperatorMetrics()
        clock = Clock(wall=self._wall, origin_seconds=EPOCH_SECONDS)
        settings = setup.settings
        self._replays = (
            Replays(
                settings=settings.replays, tick_seconds=settings.tick_seconds, metrics=metrics, monotonic=self._wall
            )
            if settings.replays.workers
            else None
        )
        self._loop = FleetLoop(
            cache=cache,
            kube=kube,
            actor=Actor(kube=kube, cap_ttl_seconds=settings.cap_ttl_seconds),
            recorder=Recorder(kube=kube),
            measurements=Measurements(
                default=MetricsSourceKind.PROMETHEUS, prometheus=collector, scrape=collector, scrape_source=None
            ),
            energy=setup.energy,
            settings=settings,
            clock=clock,
            metrics=metrics,
            replays=self._replays,
        )
        self._seen: Counter[tuple[str, str]] = Counter()
        self._notes: dict[str, Note] = {}

    def _wall(self) -> float:
        return self._now_seconds

    def decide(self, look: Look) -> Decision:
        """One pass of the fleet loop."""
        self._now_seconds = EPOCH_SECONDS + look.time_seconds
        self.cluster.sync(self._now_seconds)
        self._loop.tick()
        if self._replays is not None:
            self._replays.work_off()
        self._take_notes(look.time_seconds)
        return self.cluster.decision(self._now_seconds)

    def _take_notes(self, time_seconds: float) -> None:
        """Warnings that the operator wrote as events, and passes in which a condition says that it failed."""
        events = self.cluster.objects.events
        for (kind, reason), count in (events - self._seen).items():
            if kind == "Warning":
                self._note(f"event {reason}", count, time_seconds)
        self._seen = events.copy()
        for condition in self.cluster.status.get("conditions") or ():
            if condition.get("reason") == "InternalError":
                self._note(f"a pass failed: {condition.get('message')}", 1, time_seconds)

    def _note(self, text: str, count: int, time_seconds: float) -> None:
        known = self._notes.get(text) or Note(text=text, count=0, first_seconds=time_seconds)
        self._notes[text] = replace(known, count=known.count + count)

    @property
    def plan(self) -> Plan | None:
        """In force since the last pass; None before the first."""
        return next((state.plan for state in self._loop.states.values()), None)

    @property
    def remarks(self) -> tuple[Note, ...]:
        """What the operator itself reported."""
        return tuple(self._notes.values())

    def close(self) -> None:
        """End the loop's writer threads."""
        self._loop.stop()


def make_planner(setup: PlannerSetup) -> Callable[[Deployment, Collector], PlannerPolicy]:
    """A maker of fresh operators, one for each run."""
    return lambda deployment, collector: PlannerPolicy(setup, deployment, collector)
