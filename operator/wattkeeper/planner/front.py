"""Energy against latency: what a service could be run as, what is best among that, and what the plan takes of it.

The options are the planner's own candidates and, to show the whole trade, every replica count that its bounds allow at
a coarse grid of power limits. Each is judged by the same check and priced by the same model as in a plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.plan import Binding, Target
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy.points import EnergyQuery
from wattkeeper.planner import words
from wattkeeper.planner.scored import Search
from wattkeeper.planner.search import PowerModel
from wattkeeper.planner.sizing import Row
from wattkeeper.planner.space import Power

_MOST_COUNTS = 24
"""Replica counts shown beside the planner's candidates."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to run a service.

    Latencies are upper bounds with margin at the SLO's percentiles: what the verdict rests on; infinite where the
    replicas could not keep up.
    """

    replicas: int
    power_cap_watts: float | None
    clock_mhz: float | None
    engine: dict[str, int | float | str]
    """Arguments that differ from those in place."""
    text: str
    watts: float
    joules_per_token: float
    """Per output token at the planned rate."""
    ttft_seconds: float
    tpot_seconds: float
    utilisation: float
    feasible: bool
    why_not: str
    """Empty where feasible."""
    examined: bool
    """True for a candidate of the planner, False for one that is here to show the trade."""
    best: bool
    """True on the front: no other option is at least as good in watts, TTFT and TPOT and better in one."""
    in_place: bool
    planned: bool


def options(search: Search, *, energy: PowerModel, planned: Target | None) -> list[Option]:
    """All options of a searched service, by watts. `planned` is what was decided, None where nothing was.

    Raises WattkeeperError, ValueError or ArithmeticError where the service's data cannot be worked with.
    """
    case = search.case
    current, chosen = row_of(search, case.space.current), None if planned is None else row_of(search, planned)
    examined = {item.row for item in search.scored}
    wide = [
        Row(replicas=count, power=power)
        for count in _counts(case.space.low, case.space.high)
        for power in case.space.coarse(case.settings.grid_power_points)
    ]
    rows = list(dict.fromkeys([*examined, current, *([] if chosen is None else [chosen]), *wide]))
    search.ledger.add(rows)
    watts = energy.watts([query(search, rows)])[0].watts
    figures = search.ledger.figures(rows)
    grow = 1.0 + case.margin
    ttft = np.array([each.ttft_upper_seconds for each in figures]) * grow
    tpot = np.array([each.tpot_upper_seconds for each in figures]) * grow
    goals = [values for goal, values in ((case.request.slo.ttft, ttft), (case.request.slo.tpot, tpot)) if goal]
    stable = np.isfinite(ttft) & np.isfinite(tpot) & np.isfinite(watts)
    best = np.zeros(len(rows), dtype=bool)
    best[stable] = not_dominated(np.column_stack([watts, *goals])[stable])
    tokens = case.workload.requests_per_second * case.workload.output.mean
    rejected = {item.row: item for item in search.scored}
    found = []
    for index, row in enumerate(rows):
        violation = search.ledger.violation(row)
        if row in rejected:
            violation = rejected[row].violation
        each = figures[index]
        engine = case.space.engines[row.engine]
        found.append(
            Option(
                replicas=row.replicas,
                power_cap_watts=row.power.cap_watts,
                clock_mhz=row.power.clock_mhz,
                engine=engine.change.as_dict(),
                text=words.option(row.replicas, row.power, engine),
                watts=float(watts[index]),
                joules_per_token=float(watts[index]) / tokens,
                ttft_seconds=float(ttft[index]),
                tpot_seconds=float(tpot[index]),
                utilisation=each.utilisation,
                feasible=violation is Binding.NONE,
                why_not=""
                if violation is Binding.NONE
                else words.violation(
                    violation, case.request.slo, each.ttft_upper_seconds, each.tpot_upper_seconds, case.margin
                ),
                examined=row in examined,
                best=bool(best[index]),
                in_place=row == current,
                planned=row == chosen,
            )
        )
    return sorted(found, key=lambda option: (option.watts, option.ttft_seconds))


def query(search: Search, rows: Sequence[Row]) -> EnergyQuery:
    """What the energy model is asked about rows that the ledger knows."""
    candidates, sla = search.ledger.table(rows)
    return EnergyQuery(
        profile=search.case.request.profile,
        workload=search.case.workload,
        candidates=candidates,
        sla=sla,
        calibration=search.case.request.calibration,
    )


def row_of(search: Search, target: Target) -> Row:
    """The candidate that a target is; engine arguments that the levers do not offer count as those in place."""
    space = search.case.space
    settings = [space.current.engine.with_change(engine.change) for engine in space.engines]
    engine = settings.index(target.engine) if target.engine in settings else 0
    return Row(
        replicas=target.replicas,
        power=Power(cap_watts=target.power_cap_watts, clock_mhz=target.clock_mhz),
        engine=engine,
    )


def not_dominated(values: FloatArray) -> npt.NDArray[np.bool_]:
    """Which rows of (N, K) values, the less the better, no other row beats: as good in all, better in one. (N,)."""
    found = np.ones(len(values), dtype=bool)
    for index, value in enumerate(values):
        as_good = (values <= value).all(axis=1) & (values < value).any(axis=1)
        found[index] = not as_good.any()
    return found


def _counts(low: int, high: int) -> list[int]:
    low = max(low, 1)
    if high - low < _MOST_COUNTS:
        return list(range(low, high + 1))
    return sorted({int(count) for count in np.geomspace(low, high, _MOST_COUNTS).round()})
