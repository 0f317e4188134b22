"""One trace over one fleet under one policy, in simulated time: events in order, everything the same for the same seed.

Between two events the twin moves by itself. Events are scrapes, queries of the collector, decisions, and the ends of
the intervals that are recorded. Energy counts from the beginning to the end of the trace; requests that are under way
then are still followed until they end, or until `SETTLE_SECONDS` are over.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from wattkeeper.replay.checked import Checked, DecisionCheck, PolicyError
from wattkeeper.replay.measure import Recorder, Served, latency
from wattkeeper.replay.result import Note, Run
from wattkeeper.replay.scrape import FleetSource
from wattkeeper.replay.stage import EPOCH_SECONDS, SERVICE, ReplayError, Stage
from wattkeeper.rivals.types import Look, Policy, Sight
from wattkeeper.telemetry.collector import Collector
from wattkeeper.telemetry.source import PodKey
from wattkeeper.traces.trace import Trace
from wattkeeper.twin import hardware as twin_hardware
from wattkeeper.twin.deployment import Deployment, PodPhase
from wattkeeper.twin.fleet import Fleet, Service
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory
from wattkeeper.twin.routers import ROUTERS

SETTLE_SECONDS = 600.0
_SETTLE_STEP_SECONDS = 5.0
MakePolicy = Callable[[Deployment, Collector], Policy]
"""A fresh policy for one run. Rivals need neither; the operator looks at the pods and at all snapshots."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """How far a run is."""

    time_seconds: float
    """Simulated."""
    span_seconds: float
    """Of the whole trace."""
    requests: int
    """Arrived so far."""
    met: int
    """Finished within the SLO so far."""
    missed: int
    """Finished too late, or lost, so far."""
    energy_kwh: float


Progress = Callable[[Moment], None]
"""Told after each interval that is recorded; what it raises ends the run."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run to be played."""

    trace: Trace
    trace_name: str
    stage: Stage
    seed: int = 0
    parameters: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    """Of the policy, for the result."""
    interval_seconds: float = 60.0
    """Of the recorded columns."""


def play(cell: Cell, make_policy: MakePolicy, *, progress: Progress | None = None) -> Run:
    """Play it. Raises PolicyError where the policy does, ReplayError where the trace is empty."""
    return _Play(cell, make_policy).run(progress)


class _Play:
    def __init__(self, cell: Cell, make_policy: MakePolicy) -> None:
        trace, stage = cell.trace, cell.stage
        if not len(trace):
            raise ReplayError(f"the trace {cell.trace_name} has no requests between --from and --until")
        self._cell = cell
        inventory = Inventory()
        card = twin_hardware.card(stage.accelerator)
        for index, size in enumerate(stage.node_sizes):
            inventory.ensure(f"gpu-node-{index + 1}", card, size)
        fleet = Fleet(inventory)
        slo = stage.slo
        fleet.services[SERVICE] = Service(
            name=SERVICE,
            slo=SloTargets(
                ttft_seconds=None if slo.ttft is None else slo.ttft.seconds,
                tpot_seconds=None if slo.tpot is None else slo.tpot.seconds,
            ),
            arrivals=trace,
            router=ROUTERS[stage.router](),
            simulated_replicas=stage.simulated_replicas,
        )
        engine = twin_hardware.replica_hardware(model=stage.model, accelerator=stage.accelerator, engine=stage.engine)
        self._deployment = Deployment(
            fleet,
            name=SERVICE,
            namespace=stage.namespace,
            hardware=engine,
            replicas=stage.replicas,
            lifecycle=replace(stage.lifecycle, seed=cell.seed),
            failures=stage.failures,
        )
        self._source = FleetSource(fleet, fleet.services[SERVICE], stage.metrics, seed=cell.seed)
        self._collector = Collector(
            self._source, stage.metrics.collect_seconds, clock=lambda: EPOCH_SECONDS + fleet.now
        )
        self._policy = make_policy(self._deployment, self._collector)
        self._sight: Sight = getattr(self._policy, "sight", Sight.ALL)
        self._check = DecisionCheck(self._policy, model=stage.model, card=card, max_replicas=stage.max_replicas)
        self._recorder = Recorder(
            self._deployment, interval_seconds=cell.interval_seconds, parked_counts=stage.parked_counts
        )
        self._changes = {"replicas": 0, "caps": 0}
        self._decisions, self._decide_seconds = 0, 0.0

    def run(self, progress: Progress | None) -> Run:
        began = time.process_time()
        try:
            self._play(progress)
            energy, gpu_seconds = self._recorder.energy(), self._deployment.service.gpu_seconds
            self._settle()
        finally:
            closes = getattr(self._policy, "close", None)
            if closes is not None:
                closes()
        cell, service = self._cell, self._deployment.service
        served = Served(service, cell.stage.slo)
        remarks: tuple[Note, ...] = getattr(self._policy, "remarks", ())
        return Run(
            policy=self._policy.name,
            trace=cell.trace_name,
            seed=cell.seed,
            parameters=cell.parameters,
            energy=energy,
            requests=served.requests(service, cell.trace),
            ttft=latency(served.ttft),
            tpot=latency(served.tpot),
            windows_below_goal=served.windows_below(cell.stage.slo.min_attainment, cell.trace),
            replica_changes=self._changes["replicas"],
            rollouts=self._deployment.rollouts,
            cap_changes=self._changes["caps"],
            replica_hours=gpu_seconds / cell.stage.gpus_per_replica / 3600.0,
            columns=self._recorder.columns(cell.trace, served),
            hours=self._recorder.hours(cell.trace, served),
            repairs=self._check.repairs,
            remarks=remarks,
            wall_seconds=time.process_time() - began,
            decide_seconds=self._decide_seconds,
            decisions=self._decisions,
        )

    def _play(self, progress: Progress | None) -> None:
        path, fleet = self._cell.stage.metrics, self._deployment.fleet
        end = self._cell.trace.span_seconds
        steps = {
            "scrape": path.offset_step_seconds,
            "collect": path.collect_seconds,
            "decide": self._period(),
            "record": self._recorder.interval_seconds,
        }
        if self._sight is Sight.NONE:
            del steps["scrape"], steps["collect"]
        # Counted, not added up: a week of steps must not drift apart.
        due = dict.fromkeys(steps, 0)
        due["record"] = 1
        if "collect" in steps:
            # The first query comes when each pod was scraped once.
            due["collect"] = math.ceil((path.interval_seconds + path.delay_seconds) / path.collect_seconds)
        while fleet.now < end:
            now = min(end, *(due[name] * step for name, step in steps.items()))
            self._deployment.advance(now)
            for name, step in steps.items():
                if due[name] * step <= now < end:
                    self._on(name, due[name])
                    due[name] += 1
                    if name == "record" and progress is not None:
                        progress(self._moment())
        self._recorder.take()

    def _moment(self) -> Moment:
        trace, now = self._cell.trace, self._deployment.fleet.now
        so_far = self._deployment.service.ledger.attainment()
        return Moment(
            time_seconds=now,
            span_seconds=trace.span_seconds,
            requests=int(np.searchsorted(trace.times_seconds, now)),
            met=so_far.met,
            missed=so_far.finished - so_far.met + so_far.lost,
            energy_kwh=self._recorder.energy().total_kwh,
        )

    def _period(self) -> float:
        period = self._policy.period_seconds
        if not (np.isfinite(period) and period > 0):
            raise PolicyError(f"policy {self._policy.name}: its period must be positive and finite, not {period!r} s")
        return float(period)

    def _on(self, event: str, step: int) -> None:
        if event == "scrape":
            self._source.scrape(step)
        elif event == "collect":
            if self._sees(step):
                self._collector.collect_once()
        elif event == "decide":
            self._decide()
        else:
            self._recorder.take()

    def _sees(self, step: int) -> bool:
        """Whether the policy can tell this collection from none."""
        path, period = self._cell.stage.metrics, self._period()
        if self._sight is Sight.ALL or path.outages:
            return True
        following = math.ceil(step * path.collect_seconds / period) * period
        return following < (step + 1) * path.collect_seconds

    def _decide(self) -> None:
        look = self._look()
        began = time.process_time()
        wanted = self._check.decide(look)
        self._decide_seconds += time.process_time() - began
        self._decisions += 1
        self._do(wanted)

    def _look(self) -> Look:
        pods: dict[PodPhase, list[PodKey]] = {phase: [] for phase in PodPhase}
        for view in self._deployment.pods():
            pods[view.phase].append(view.key)
        return Look(
            time_seconds=self._deployment.fleet.now,
            snapshot=self._collector.latest(),
            desired_replicas=self._deployment.desired,
            ready_pods=tuple(pods[PodPhase.READY]),
            starting_pods=(*pods[PodPhase.STARTING], *pods[PodPhase.PENDING]),
            draining_pods=tuple(pods[PodPhase.DRAINING]),
        )

    def _do(self, wanted: Checked) -> None:
        deployment = self._deployment
        if wanted.replicas is not None and wanted.replicas != deployment.desired:
            deployment.scale(wanted.replicas)
            self._changes["replicas"] += 1
        if wanted.hardware is not None:
            deployment.roll_out(wanted.hardware)
        before = self._limits()
        if wanted.gpu_limits is not None:
            deployment.limit(wanted.gpu_limits)
        card = deployment.hardware.card
        watts, clock = deployment.power
        if wanted.watts is not None:
            watts = None if wanted.watts >= card.tdp_watts else wanted.watts
        if wanted.clock_mhz is not None:
            clock = None if wanted.clock_mhz >= card.maximum_clock_mhz else wanted.clock_mhz
        if (watts, clock) != deployment.power:
            deployment.set_power(watts=watts, clock_mhz=clock)
        self._changes["caps"] += self._limits() != before

    def _limits(self) -> set[tuple[float | None, float | None]]:
        """Limits that GPUs of ready pods are asked to keep; which GPU has which does not count as a change."""
        ready = self._deployment.service.ready()
        return {(gpu.requested_watts, gpu.requested_clock_mhz) for member in ready for gpu in member.gpus}

    def _settle(self) -> None:
        """Follow what is under way; its energy is no longer counted."""
        fleet, service = self._deployment.fleet, self._deployment.service
        end = fleet.now + SETTLE_SECONDS
        while fleet.now < end and any(replica.outstanding for replica in service.played()):
            self._deployment.advance(fleet.now + _SETTLE_STEP_SECONDS)
