"""One policy against one trace: virtual time, metrics as they come, decisions as the cluster takes them."""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import Slo
from wattkeeper.domain.workload import FloatArray
from wattkeeper.replay.result import QUANTILES, Course, Energy, Requests, Run
from wattkeeper.replay.scrape import EPOCH_SECONDS, Pipeline, ScrapeSettings
from wattkeeper.rivals.types import Decision, Look, Policy
from wattkeeper.traces.trace import Trace
from wattkeeper.twin import hardware
from wattkeeper.twin.deployment import Deployment, Lifecycle, PodPhase, draw_failures
from wattkeeper.twin.fleet import Fleet, Service
from wattkeeper.twin.hardware import EngineStartError, ReplicaHardware
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory
from wattkeeper.twin.routers import ROUTERS

NAMESPACE, SERVICE = "replay", "chat"
_WINDOW_SECONDS = 600.0
_HOUR_SECONDS = 3600.0


class PolicyError(WattkeeperError):
    """A policy failed, or wants what no cluster can give."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Fleet and service that all policies are given alike."""

    model: str
    accelerator: str
    slo: Slo
    gpus: int
    """In the whole fleet."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    """Arguments that the service starts with."""
    gpus_per_node: int = 8
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    router: str = "least-outstanding"
    scrape: ScrapeSettings = field(default_factory=ScrapeSettings)
    failures_per_day: float = 0.0
    time_factor: float = 1.0
    """True step times over those of the twin's tables, which is what everybody believes."""
    power_factor: float = 1.0
    """The same for watts."""
    interval_seconds: float = 300.0
    """Between two points of a run's course."""
    settle_seconds: float = 120.0
    """After the end of the trace, for requests under way."""

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ValueError(f"there is no router {self.router!r}; choose one of {', '.join(ROUTERS)}")
        if self.gpus < 1 or self.gpus_per_node < 1:
            raise ValueError("a fleet needs at least one GPU, and nodes at least one each")
        if not (self.interval_seconds > 0.0 and self.settle_seconds >= 0.0):
            raise ValueError("the interval of a course must be positive, and the time to settle not negative")

    def hardware(self, engine: EngineSettings) -> ReplicaHardware:
        """One replica with these arguments, as it really is. Raises what `twin.hardware` raises."""
        spec = hardware.replica_hardware(model=self.model, accelerator=self.accelerator, engine=engine)
        return hardware.perturbed(spec, time=self.time_factor, power=self.power_factor)

    @property
    def targets(self) -> SloTargets:
        """What every request is judged by."""
        return SloTargets(
            ttft_seconds=None if self.slo.ttft is None else self.slo.ttft.seconds,
            tpot_seconds=None if self.slo.tpot is None else self.slo.tpot.seconds,
        )

    @property
    def most_replicas(self) -> int:
        """As many as all GPUs hold."""
        size = self.hardware(self.engine).gpus
        return (self.gpus_per_node // size) * (self.gpus // self.gpus_per_node) + (
            self.gpus % self.gpus_per_node
        ) // size

    def started(self, trace: Trace, *, replicas: int, seed: int) -> Deployment:
        """The fleet at the beginning, with `replicas` ready."""
        spec = self.hardware(self.engine)
        inventory = Inventory()
        for index, first in enumerate(range(0, self.gpus, self.gpus_per_node)):
            inventory.ensure(f"node-{index}", spec.card, min(self.gpus_per_node, self.gpus - first))
        fleet = Fleet(inventory)
        fleet.services[SERVICE] = Service(
            name=SERVICE, slo=self.targets, arrivals=trace.arrivals(), router=ROUTERS[self.router]()
        )
        failures = draw_failures(per_day=self.failures_per_day, span_seconds=trace.span_seconds, seed=seed)
        return Deployment(
            fleet,
            name=SERVICE,
            namespace=NAMESPACE,
            hardware=spec,
            replicas=replicas,
            lifecycle=replace(self.lifecycle, seed=seed),
            failures=failures,
        )


MakePolicy = Callable[[Deployment, Pipeline], Policy]
"""Policies of rivals look at neither; the planner needs the pods and the pipeline's earlier snapshots."""


def play(
    world: World,
    trace: Trace,
    make: MakePolicy,
    *,
    start_replicas: int,
    seed: int = 0,
    parameters: dict[str, float] | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Run:
    """Play the whole trace. `progress` is told the share done. Raises PolicyError and what the world's parts raise."""
    began = time.perf_counter()
    deployment = world.started(trace, replicas=start_replicas, seed=seed)
    fleet, service = deployment.fleet, deployment.service
    pipeline = Pipeline(fleet, service, replace(world.scrape, seed=seed))
    policy = make(deployment, pipeline)
    carrier = _Carrier(world, deployment, policy.name)
    recorder = _Recorder(deployment, world.interval_seconds)
    scrape_at, decide_at, span = 0.0, world.scrape.delay_seconds, trace.span_seconds
    while fleet.now < span:
        deployment.advance(min(scrape_at, decide_at, recorder.due, span))
        if fleet.now >= recorder.due:
            recorder.record()
            progress(fleet.now / span)
        if fleet.now >= scrape_at:
            pipeline.scrape(fleet.now)
            scrape_at += world.scrape.interval_seconds
        if fleet.now >= decide_at:
            try:
                decision = policy.decide(_look(deployment, pipeline))
            except WattkeeperError as error:
                raise PolicyError(f"policy {policy.name} at {fleet.now:.0f} s: {error}") from error
            except Exception as error:
                raise PolicyError(
                    f"policy {policy.name} at {fleet.now:.0f} s failed: {type(error).__name__}: {error}"
                ) from error
            carrier.apply(decision)
            decide_at += policy.period_seconds
    recorder.record()
    energy = Energy(
        total=service.energy_joules,
        idle=service.idle_joules,
        startup=service.startup_joules,
        parked=fleet.parked_joules,
    )
    gpu_seconds = service.gpu_seconds
    deployment.advance(span + world.settle_seconds)
    return _run(
        world, trace, deployment, carrier, recorder,
        policy=policy.name, seed=seed, parameters=parameters or {}, energy=energy, gpu_seconds=gpu_seconds,
        notes=tuple(getattr(policy, "notes", ())), wall_seconds=time.perf_counter() - began,
        lost_pages=pipeline.lost_pages,
    )  # fmt: skip


def _look(deployment: Deployment, pipeline: Pipeline) -> Look:
    pods = deployment.pods()
    now = deployment.fleet.now
    snapshot = pipeline.latest(now)
    if snapshot is not None:
        behind = now - (snapshot.time_seconds - EPOCH_SECONDS)
        aged = {key: replace(each, age_seconds=each.age_seconds + behind) for key, each in snapshot.pods.items()}
        snapshot = replace(snapshot, pods=aged)
    return Look(
        time_seconds=now,
        snapshot=snapshot,
        desired_replicas=deployment.desired,
        ready_pods=tuple(pod.key for pod in pods if pod.phase is PodPhase.READY),
        starting_pods=tuple(pod.key for pod in pods if pod.phase in (PodPhase.PENDING, PodPhase.STARTING)),
        draining_pods=tuple(pod.key for pod in pods if pod.phase is PodPhase.DRAINING),
    )


class _Carrier:
    """Carries decisions out, and counts what had to be put right."""

    def __init__(self, world: World, deployment: Deployment, policy: str) -> None:
        self._world = world
        self._deployment = deployment
        self._policy = policy
        self._most = world.most_replicas
        self.repairs: Counter[str] = Counter()
        self.scale_changes = self.power_changes = 0

    def apply(self, decision: Decision) -> None:
        deployment = self._deployment
        if decision.engine is not None:
            try:
                deployment.roll_out(self._world.hardware(decision.engine))
            except EngineStartError:
                self.repairs["engine arguments that would not start, left as they were"] += 1
        if decision.replicas is not None:
            replicas = self._replicas(decision.replicas)
            if replicas != deployment.desired:
                deployment.scale(replicas)
                self.scale_changes += 1
        if decision.gpu_limits is not None:
            before = _limits(deployment)
            for watts, clock in decision.gpu_limits.values():
                self._check_power(watts, clock)
            deployment.limit(decision.gpu_limits)
            self.power_changes += _limits(deployment) != before
        elif (decision.power_cap_watts, decision.clock_mhz) != deployment.power:
            self._check_power(decision.power_cap_watts, decision.clock_mhz)
            deployment.set_power(watts=decision.power_cap_watts, clock_mhz=decision.clock_mhz)
            self.power_changes += 1

    def _replicas(self, wanted: int) -> int:
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
            raise PolicyError(
                f"policy {self._policy} at {self._deployment.fleet.now:.0f} s wants {wanted!r} replicas: a whole "
                "number that is not negative is needed"
            )
        if wanted > self._most:
            self.repairs[f"more replicas than the {self._most} that the GPUs hold, cut"] += 1
        return min(wanted, self._most)

    def _check_power(self, watts: float | None, clock_mhz: float | None) -> None:
        for what, value in (("W", watts), ("MHz", clock_mhz)):
            if value is not None and not 0.0 < value < math.inf:
                raise PolicyError(
                    f"policy {self._policy} at {self._deployment.fleet.now:.0f} s wants {value} {what}: a positive "
                    "number is needed"
                )
        card = self._deployment.hardware.card
        if watts is not None and not card.minimum_cap_watts <= watts <= card.tdp_watts:
            self.repairs["power limits outside the card's range, clamped by the card"] += 1


def _limits(deployment: Deployment) -> set[tuple[float | None, float | None]]:
    gpus = deployment.fleet.inventory.all()
    return {(gpu.requested_watts, gpu.requested_clock_mhz) for gpu in gpus if gpu.holder is not None}


class _Recorder:
    """Points of the course, and cumulative energy for hours."""

    def __init__(self, deployment: Deployment, interval_seconds: float) -> None:
        self._deployment = deployment
        self._interval = interval_seconds
        self.due = interval_seconds
        self.times = [0.0]
        self.joules = [0.0]
        self.rows: list[tuple[int, int, int, float, float, int, float]] = []

    def record(self) -> None:
        deployment = self._deployment
        now = deployment.fleet.now
        if now <= self.times[-1]:
            return
        ready = deployment.service.ready()
        gpus = [gpu for member in ready for gpu in member.gpus]
        replicas = [member.replica for member in ready if member.replica is not None]
        phases = [pod.phase for pod in deployment.pods()]
        self.rows.append(
            (
                deployment.desired,
                len(ready),
                sum(phase in (PodPhase.STARTING, PodPhase.PENDING) for phase in phases),
                _mean([gpu.limit_watts for gpu in gpus]),
                _mean([gpu.clock_mhz for gpu in gpus]),
                sum(len(replica.waiting) for replica in replicas),
                _mean([replica.kv_usage for replica in replicas]),
            )
        )
        self.times.append(now)
        self.joules.append(deployment.service.energy_joules)
        self.due = now + self._interval


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _run(
    world: World,
    trace: Trace,
    deployment: Deployment,
    carrier: _Carrier,
    recorder: _Recorder,
    *,
    policy: str,
    seed: int,
    parameters: dict[str, float],
    energy: Energy,
    gpu_seconds: float,
    notes: tuple[str, ...],
    wall_seconds: float,
    lost_pages: int,
) -> Run:
    ledger = deployment.service.ledger
    counts = ledger.attainment()
    arrival, ttft, tpot = ledger.samples()
    targets = world.targets
    met = np.ones(len(arrival), dtype=bool)
    if targets.ttft_seconds is not None:
        met &= ttft <= targets.ttft_seconds
    if targets.tpot_seconds is not None:
        met &= tpot <= targets.tpot_seconds
    span = trace.span_seconds
    windows_met, windows_arrived = _by_window(trace, arrival[met], _WINDOW_SECONDS)
    busy = windows_arrived > 0
    bad = windows_met[busy] < world.slo.min_attainment * windows_arrived[busy]
    hours_met, hours_arrived = _by_window(trace, arrival[met], _HOUR_SECONDS)
    edges = np.minimum(np.arange(len(hours_met) + 1) * _HOUR_SECONDS, span)
    hourly = np.diff(np.interp(edges, recorder.times, recorder.joules))
    times = np.array(recorder.times)
    rows = recorder.rows
    widths = np.diff(times)
    ready = np.array([row[1] for row in rows], dtype=np.float64)
    repairs = dict(carrier.repairs)
    if lost_pages:
        repairs["metrics pages lost on the way"] = lost_pages
    return Run(
        policy=policy,
        seed=seed,
        parameters=parameters,
        energy=energy,
        requests=Requests(
            arrived=counts.arrived,
            finished=counts.finished,
            met=counts.met,
            lost={reason: count for reason, count in ledger.lost_by_reason.items() if count},
            unfinished=counts.unfinished,
            output_tokens=ledger.output_tokens,
        ),
        ttft_seconds=_quantiles(ttft),
        tpot_seconds=_quantiles(tpot),
        bad_windows=float(np.mean(bad)) if busy.any() else 0.0,
        gpu_seconds=gpu_seconds,
        mean_replicas=gpu_seconds / deployment.hardware.gpus / span,
        most_replicas=int(max((row[1] + row[2] for row in rows), default=0)),
        scale_changes=carrier.scale_changes,
        power_changes=carrier.power_changes,
        rollouts=deployment.rollouts,
        hourly_joules=tuple(hourly.tolist()),
        hourly_met=tuple(hours_met.tolist()),
        hourly_arrived=tuple(hours_arrived.tolist()),
        repairs=repairs,
        notes=notes,
        wall_seconds=wall_seconds,
        course=_course(trace, arrival, ttft, tpot, met, times, widths, recorder, ready, world.interval_seconds),
    )


def _by_window(trace: Trace, met_arrivals: FloatArray, seconds: float) -> tuple[FloatArray, FloatArray]:
    """(requests that met the SLO, all requests) that arrived in each window."""
    count = max(1, math.ceil(trace.span_seconds / seconds))
    edges = np.arange(count + 1) * seconds
    met, _ = np.histogram(met_arrivals, edges)
    arrived, _ = np.histogram(trace.times_seconds, edges)
    return met, arrived


def _course(
    trace: Trace,
    arrival: FloatArray,
    ttft: FloatArray,
    tpot: FloatArray,
    met: FloatArray,
    times: FloatArray,
    widths: FloatArray,
    recorder: _Recorder,
    ready: FloatArray,
    interval_seconds: float,
) -> Course:
    rows = recorder.rows
    arrived, _ = np.histogram(trace.times_seconds, times)
    attained, _ = np.histogram(arrival[met], times)
    bins = np.searchsorted(times, arrival, side="right") - 1
    order = np.argsort(bins, kind="stable")
    limits = np.searchsorted(bins[order], np.arange(len(rows) + 1))
    percentiles: list[tuple[float | None, float | None]] = []
    for index in range(len(rows)):
        part = order[limits[index] : limits[index + 1]]
        if len(part):
            percentiles.append((float(np.percentile(ttft[part], 95)), float(np.percentile(tpot[part], 95))))
        else:
            percentiles.append((None, None))
    return Course(
        interval_seconds=interval_seconds,
        requests_per_second=tuple((arrived / widths).tolist()),
        power_watts=tuple((np.diff(recorder.joules) / widths).tolist()),
        desired=tuple(row[0] for row in rows),
        ready=tuple(int(each) for each in ready),
        starting=tuple(row[2] for row in rows),
        cap_watts=tuple(row[3] for row in rows),
        clock_mhz=tuple(row[4] for row in rows),
        waiting=tuple(row[5] for row in rows),
        kv_usage=tuple(row[6] for row in rows),
        ttft_p95_seconds=tuple(each[0] for each in percentiles),
        tpot_p95_seconds=tuple(each[1] for each in percentiles),
        attainment=tuple(float(good / count) if count else None for good, count in zip(attained, arrived, strict=True)),
    )


def _quantiles(values: FloatArray) -> tuple[float, ...]:
    if not len(values):
        return (math.nan,) * len(QUANTILES)
    return tuple(np.quantile(values, QUANTILES).tolist())
