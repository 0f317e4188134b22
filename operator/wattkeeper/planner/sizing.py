"""What is feasible: candidates of one service against its SLO with margin, and the least replicas that carry a rate.

A candidate is feasible where it is stable, its KV cache rarely overflows, the planned load stays below the ceiling,
and the upper bounds of TTFT and TPOT times (1 + margin) meet their targets. Feasibility grows with replicas, so a
bisection finds the least of them. A call of the SLA check costs about a millisecond however few it judges, so that all
that may be wanted goes into few calls.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.observation import MetricsState
from wattkeeper.domain.plan import Binding
from wattkeeper.domain.workload import Workload
from wattkeeper.physics.profile import Provenance
from wattkeeper.planner.space import LeverSpace, Power, lever_space
from wattkeeper.planner.types import PlannerSettings, PlanRequest
from wattkeeper.queueing.types import Candidates, SlaPrediction, SlaQuery

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Table = TypeVar("Table", Candidates, SlaPrediction)

_POINTS_PER_CALL = 10
_WIDEST_ESTIMATE = 2.0
"""Replica counts examined at once per engine while the least feasible one is sought."""


class SlaModel(Protocol):
    """`queueing.sla.predict_fleet`, or a stand-in with the same signature."""

    def __call__(self, queries: Sequence[SlaQuery]) -> list[SlaPrediction]:
        """Latency and load of every candidate at its workload's rate, one answer per query."""


class Row(NamedTuple):
    """One candidate: `engine` is an index into the space's engines. A tuple, as thousands are hashed per plan."""

    replicas: int
    power: Power
    engine: int = 0
    load: float = 1.0
    """Rate that it is judged at, as a multiple of the planned rate."""


class Figures(NamedTuple):
    """Predicted latencies, their upper bounds on which the verdict rests, and the load over the capacity."""

    ttft_seconds: float
    tpot_seconds: float
    ttft_upper_seconds: float
    tpot_upper_seconds: float
    utilisation: float


@dataclass(frozen=True, kw_only=True)
class Case:
    """One service, made ready for the search."""

    request: PlanRequest
    settings: PlannerSettings
    space: LeverSpace
    workload: Workload
    """At the planned rate."""
    stabilised_rate: float
    """What fewer replicas must carry, requests per second; at least the planned rate."""
    margin: float
    ceiling: float

    @property
    def stabilised_load(self) -> float:
        """The stabilised over the planned rate, at least 1."""
        return self.stabilised_rate / self.workload.requests_per_second

    @property
    def idle_load(self) -> float:
        """The rate of a service that idles over the planned rate."""
        return self.settings.idle_rate_per_second / self.workload.requests_per_second


def make_case(request: PlanRequest, settings: PlannerSettings) -> Case:
    """A request with its levers, margins and planned workloads worked out. Its workload and rate must be known."""
    workload, planned = request.observation.workload, request.planned_rate
    if workload is None or planned is None:
        raise ValueError(f"{request.key}: no workload to plan for; the guards hold such a service")
    planned = max(planned, settings.idle_rate_per_second)
    bursty = float(workload.dispersion.at(1.0)) > settings.bursty_dispersion
    return Case(
        request=request,
        settings=settings,
        space=lever_space(request, settings),
        workload=workload.at_rate(planned),
        stabilised_rate=max(planned, request.planned_rate_stabilised or 0.0),
        margin=margin(request, settings),
        ceiling=settings.planned_load_ceiling_bursty if bursty else settings.planned_load_ceiling,
    )


def margin(request: PlanRequest, settings: PlannerSettings) -> float:
    """Relative latency margin: the base, what live residuals ask for, and a widening for each thing not trusted."""
    total = settings.margin_base + max(0.0, request.margin)
    if request.observation.state is MetricsState.PARTIAL:
        total += settings.margin_partial_metrics
    if not request.trusted:
        total += settings.margin_untrusted
    if request.profile.provenance is Provenance.ESTIMATED:
        # Narrower as running engines confirm the estimate, wider where they do not fit it.
        known = request.profile.relative_error / settings.estimated_profile_error
        total += settings.margin_estimated_profile * min(max(known, 0.0), _WIDEST_ESTIMATE)
    return min(total, settings.margin_max)


class Ledger:
    """Predictions of one service's candidates: each is made once, many in one call."""

    def __init__(self, case: Case, *, predict: SlaModel) -> None:
        self.case = case
        self._predict = predict
        self._at: dict[Row, int] = {}
        self._violations: list[Binding] = []
        self._chunks: list[tuple[Candidates, SlaPrediction]] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Judge the rows that are not known yet, in one call."""
        new = self.unknown(rows)
        if new:
            query = self.query(new)
            self.take(new, query.candidates, self._predict([query])[0])

    def unknown(self, rows: Iterable[Row]) -> list[Row]:
        """The rows that are not known yet, each once."""
        return [row for row in dict.fromkeys(rows) if row not in self._at]

    def query(self, rows: Sequence[Row]) -> SlaQuery:
        """What to ask about these rows."""
        slo = self.case.request.slo
        return SlaQuery(
            profile=self.case.request.profile,
            workload=self.case.workload,
            candidates=_candidates(self.case, rows),
            ttft_percentile=slo.ttft.percentile if slo.ttft else 95.0,
            tpot_percentile=slo.tpot.percentile if slo.tpot else 95.0,
        )

    def take(self, rows: Sequence[Row], candidates: Candidates, sla: SlaPrediction) -> None:
        """Note what was answered about rows that were not known."""
        start = len(self._violations)
        self._at |= {row: start + index for index, row in enumerate(rows)}
        self._violations += violations(self.case, sla)
        self._chunks.append((candidates, sla))

    def judge_by(self, case: Case) -> None:
        """Judge what is known, and what comes, by this case: the same but for its ceiling."""
        self.case = case
        if self._at:
            self._violations = violations(case, self._all()[1])

    def bounds(self, low: int, high: int, *, engine: int, load: float) -> tuple[int, int]:
        """Largest known infeasible and smallest known feasible replica count at full power.

        low - 1 and high + 1 where none is known.
        """
        full = self.case.space.full_power
        known = {
            row.replicas: self._violations[at] is Binding.NONE
            for row, at in self._at.items()
            if row.engine == engine and row.load == load and low <= row.replicas <= high and row.power == full
        }
        bad = max((count for count, fine in known.items() if not fine), default=low - 1)
        return bad, min((count for count, fine in known.items() if fine and count > bad), default=high + 1)

    def violation(self, row: Row) -> Binding:
        """NONE where a known row is feasible, else its first violated constraint."""
        return self._violations[self._at[row]]

    def feasible(self, row: Row) -> bool:
        """True where a known row violates nothing."""
        return self.violation(row) is Binding.NONE

    def table(self, rows: Sequence[Row]) -> tuple[Candidates, SlaPrediction]:
        """Known rows as the energy model takes them, in their order."""
        candidates, sla = self._all()
        at = np.array([self._at[row] for row in rows], dtype=int)
        return _taken(candidates, at), _taken(sla, at)

    def figures(self, rows: Sequence[Row]) -> list[Figures]:
        """What the SLA check says of known rows, in their order."""
        _, sla = self._all()
        at = np.array([self._at[row] for row in rows], dtype=int)
        columns = [getattr(sla, name)[at].tolist() for name in Figures._fields]
        return [Figures(*values) for values in zip(*columns, strict=True)]

    def _all(self) -> tuple[Candidates, SlaPrediction]:
        if len(self._chunks) > 1:
            candidates = _joined([chunk for chunk, _ in self._chunks])
            self._chunks = [(candidates, _joined([chunk for _, chunk in self._chunks]))]
        return self._chunks[0]


def violations(case: Case, sla: SlaPrediction) -> list[Binding]:
    """The first constraint that each candidate violates; NONE where it is feasible."""
    slo, grow = case.request.slo, 1.0 + case.margin
    checks: list[tuple[Binding, BoolArray]] = [
        (Binding.KV_CACHE, sla.stable | (sla.binding != Binding.KV_CACHE)),
        (Binding.STABILITY, sla.stable),
        (Binding.KV_CACHE, sla.preemption_risk <= case.settings.preemption_risk_ceiling),
        (Binding.PLANNED_LOAD, sla.utilisation <= case.ceiling),
    ]
    if slo.ttft is not None:
        checks.append((Binding.TTFT, sla.ttft_upper_seconds * grow <= slo.ttft.seconds))
    if slo.tpot is not None:
        checks.append((Binding.TPOT, sla.tpot_upper_seconds * grow <= slo.tpot.seconds))
    result = [Binding.NONE] * len(sla.stable)
    for binding, passed in checks:
        for index in np.flatnonzero(~np.asarray(passed, dtype=bool)):
            if result[index] is Binding.NONE:
                result[index] = binding
    return result


@dataclass(frozen=True, kw_only=True)
class Required:
    """The least replicas at full power for one engine."""

    replicas: int | None
    """None: not even the upper bound is enough."""
    below: Binding
    """What one replica fewer violates; MIN_REPLICAS at the lower bound; what the upper bound violates where None."""


def required_replicas(
    ledger: Ledger, *, low: int, high: int, engines: Sequence[int], load: float = 1.0
) -> dict[int, Required]:
    """The least replicas in [low, high] that are feasible at full power, by engine index.

    `load` asks for a multiple of the planned rate.
    """
    while True:
        bounds = {engine: ledger.bounds(low, high, engine=engine, load=load) for engine in engines}
        rows = [
            full_power_row(ledger.case, count, engine=engine, load=load)
            for engine, (bad, good) in bounds.items()
            for count in probe(bad, good, near=ledger.case.space.current.replicas)
        ]
        if not rows:
            break
        ledger.add(rows)
    result = {}
    for engine, (bad, good) in bounds.items():
        below = Binding.MIN_REPLICAS
        if bad >= low:
            below = ledger.violation(full_power_row(ledger.case, bad, engine=engine, load=load))
        result[engine] = Required(replicas=good if good <= high else None, below=below)
    return result


def full_power_row(case: Case, replicas: int, *, engine: int = 0, load: float = 1.0) -> Row:
    """A replica count without any limit on power."""
    return Row(replicas=replicas, power=case.space.full_power, engine=engine, load=load)


def probe(bad: int, good: int, *, near: int) -> list[int]:
    """Counts strictly between a bad and a good one to examine next: all if few, else spread and next to `near`."""
    if good - bad <= _POINTS_PER_CALL + 1:
        return list(range(bad + 1, good))
    spread = np.geomspace(bad + 1, good - 1, _POINTS_PER_CALL - 3).round().astype(int)
    around = {count for count in (near - 1, near, near + 1) if bad < count < good}
    return sorted({int(count) for count in spread} | around)


def _candidates(case: Case, rows: Sequence[Row]) -> Candidates:
    """The rows as arrays; at a multiple of the rate N replicas bear what N / multiple of them bear at the rate."""
    engines = [case.space.engines[row.engine] for row in rows]
    max_clock = case.request.profile.gpu.max_clock_mhz
    return Candidates(
        replicas=_array([row.replicas / row.load for row in rows]),
        power_cap_watts=_array([np.nan if row.power.cap_watts is None else row.power.cap_watts for row in rows]),
        clock_ratio=_array([1.0 if row.power.clock_mhz is None else row.power.clock_mhz / max_clock for row in rows]),
        max_num_seqs=_array([engine.max_num_seqs for engine in engines]),
        max_num_batched_tokens=_array([engine.max_num_batched_tokens for engine in engines]),
        kv_capacity_tokens=_array([engine.kv_capacity_tokens for engine in engines]),
    )


def _array(values: Sequence[float]) -> FloatArray:
    return np.array(values, dtype=np.float64)


def _taken(table: Table, at: npt.NDArray[np.intp]) -> Table:
    values: dict[str, Any] = {item.name: getattr(table, item.name)[at] for item in fields(table)}
    return type(table)(**values)


def _joined(tables: Sequence[Table]) -> Table:
    values: dict[str, Any] = {
        item.name: np.concatenate([getattr(table, item.name) for table in tables]) for item in fields(tables[0])
    }
    return type(tables[0])(**values)
