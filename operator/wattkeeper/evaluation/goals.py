"""What the latency model is meant to reach, and whether it does."""

from dataclasses import dataclass

import numpy as np

from wattkeeper.evaluation import baselines, methods, score, sla, tables
from wattkeeper.evaluation.rendering import Cell, Table
from wattkeeper.evaluation.score import ArrivalClass, Spread
from wattkeeper.evaluation.sla import Evaluation

ERRORS: tuple[tuple[ArrivalClass, str, float, float], ...] = (
    (ArrivalClass.POISSON, "TTFT", 4.0, 12.0),
    (ArrivalClass.POISSON, "TPOT", 2.0, 6.0),
    (ArrivalClass.BURSTY, "TTFT", 10.0, 30.0),
    (ArrivalClass.BURSTY, "TPOT", 5.0, 25.0),
    (ArrivalClass.RECORDED, "TTFT", 20.0, 60.0),
)
"""Median and 90th percentile of the relative error of p95, %, at loads that are planned for."""
CAPACITY: dict[str, float] = {"slots": 3.0, "budget": 3.0, "KV": 6.0}
"""90th percentile of the relative error of the capacity, %, by what binds."""
FALSE_MET, FALSE_MISSED = 0.1, 15.0


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A figure and what it should be."""

    what: str
    asked: str
    found: str
    interval: str
    met: bool


def goals(evaluation: Evaluation) -> Table:
    """One row per goal that this grid can tell something about."""
    rows: list[tuple[Cell, ...]] = [
        (goal.what, goal.asked, goal.found, goal.interval, "yes" if goal.met else "no")
        for goal in [*_errors(evaluation), *_capacity(evaluation), *_verdicts(evaluation)]
    ]
    return Table(
        key="goals",
        title="Goals",
        note=(
            f"Load <= {score.PLANNED_LOAD}, arrivals known from {sla.PATH}. Median / 90th percentile of relative "
            "errors in %; 95 % intervals by bootstrap over points."
        ),
        columns=("goal", "asked", "found", "interval", "met"),
        rows=tuple(rows),
    )


def _errors(evaluation: Evaluation) -> list[Goal]:
    part = tables.planned(evaluation)
    names = [name for name, _ in tables.METRICS]
    made = []
    for arrivals, metric, median, p90 in ERRORS:
        where = part & tables.of_class(evaluation, arrivals)
        found = tables.errors(evaluation, names.index(metric), where, method=sla.MODEL)
        if found is not None:
            made.append(_goal(f"p95 {metric}, {arrivals} ({found.count} points)", found, median=median, p90=p90))
    return made


def _capacity(evaluation: Evaluation) -> list[Goal]:
    runs = methods.saturating(evaluation.runs)
    bound = baselines.binding(baselines.moments(runs))
    found, real = methods.capacity_rps(runs), np.array([run.saturation_rps for run in runs])
    made = []
    for name, p90 in CAPACITY.items():
        where = bound == name
        spread = score.spread(score.relative_errors(found[where], real[where]))
        if spread is not None:
            made.append(_goal(f"capacity, {name} bind ({spread.count} points, all loads)", spread, median=p90, p90=p90))
    return made


def _verdicts(evaluation: Evaluation) -> list[Goal]:
    method = sla.DECIDES_STAGE if sla.DECIDES_STAGE in evaluation.methods else sla.DECIDES
    part = tables.planned(evaluation)
    found, real = (
        evaluation.latencies(sla.HALF_SCRAPED, method, tables.P95).where(part),
        evaluation.truth(sla.HALF_SCRAPED, tables.P95).where(part),
    )
    made = score.verdicts(found, real, margin=0.0)
    return [
        Goal(
            what=f"{name}: {method}, no margin, arrivals known from {sla.HALF_SCRAPED}",
            asked=f"<= {asked:g}",
            found=f"{share.percent:.2g}",
            interval=f"{share.interval[0]:.2g} to {share.interval[1]:.2g}",
            met=share.percent <= asked,
        )
        for name, share, asked in (
            ("accepted that violate", made.false_met, FALSE_MET),
            ("feasible that are rejected", made.false_missed, FALSE_MISSED),
        )
    ]


def _goal(what: str, found: Spread, *, median: float, p90: float) -> Goal:
    return Goal(
        what=what,
        asked=f"{median:g} / {p90:g}",
        found=f"{found.median:.1f} / {found.p90:.1f}",
        interval="{:.1f} to {:.1f} / {:.1f} to {:.1f}".format(*found.median_interval, *found.p90_interval),
        met=found.median <= median and found.p90 <= p90,
    )
