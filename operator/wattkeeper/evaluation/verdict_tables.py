"""Tables of what believing a prediction leads to: false verdicts, and how often the truth is worse."""

import numpy as np

from wattkeeper.evaluation import score, sla, tables
from wattkeeper.evaluation.rendering import Cell, Table
from wattkeeper.evaluation.score import MARGINS, PLANNED_LOAD, ArrivalClass
from wattkeeper.evaluation.sla import Evaluation
from wattkeeper.queueing.types import BoolArray

_NOTE = (
    f"p95 TTFT and p95 TPOT against 20 pairs of targets, load <= {PLANNED_LOAD}. % of accepted that violate / % of "
    "truly feasible that are rejected (% of points that exceed prediction x (1 + margin))."
)


def verdict_tables(evaluation: Evaluation) -> list[Table]:
    """All of them, in the order of the page."""
    return [
        *(of_methods(evaluation, view, key) for view, key in ((sla.PATH, "path"), (sla.HALF_SCRAPED, "half"))),
        of_classes(evaluation),
        exceedance(evaluation),
    ]


def of_methods(evaluation: Evaluation, view: str, key: str) -> Table:
    """Every method by margin."""
    part = tables.planned(evaluation)
    return Table(
        key=f"verdicts_{key}",
        title=f"False verdicts, arrivals known from {view}",
        note=_NOTE,
        columns=("method", *(f"margin {margin:.0%}" for margin in MARGINS)),
        rows=tuple((method, *_row(evaluation, view, method, part)) for method in evaluation.methods),
    )


def of_classes(evaluation: Evaluation) -> Table:
    """What decides, by kind of arrivals."""
    part = tables.planned(evaluation)
    rows: list[tuple[Cell, ...]] = [
        (f"{method}: {name}", *_row(evaluation, sla.PATH, method, part & where))
        for method in dict.fromkeys((sla.MODEL, sla.DECIDES, sla.DECIDES_FRESH, sla.DECIDES_STAGE))
        if method in evaluation.methods
        for name, where in tables.classes(evaluation)
        if where.any()
    ]
    return Table(
        key="verdicts_by_class",
        title="False verdicts by arrivals",
        note=f"Arrivals known from {sla.PATH}. {_NOTE}",
        columns=("method and arrivals", *(f"margin {margin:.0%}" for margin in MARGINS)),
        rows=tuple(rows),
    )


def _row(evaluation: Evaluation, view: str, method: str, part: BoolArray) -> tuple[Cell, ...]:
    found, real = evaluation.latencies(view, method, tables.P95), evaluation.truth(view, tables.P95)
    return tuple(score.verdicts(found.where(part), real.where(part), margin=margin) for margin in MARGINS)


def exceedance(evaluation: Evaluation) -> Table:
    """How often the truth is above a prediction: half the time for a best guess, a tenth for an upper one."""
    part = tables.planned(evaluation)
    asked = [method for method in evaluation.methods if method not in sla.BASELINES]
    rows: list[tuple[Cell, ...]] = []
    for method in asked:
        for metric, value in tables.METRICS:
            found = value(evaluation.latencies(sla.PATH, method, tables.P95))
            above = value(evaluation.truth(sla.PATH, tables.P95)) > found
            groups = [part & tables.of_class(evaluation, each) for each in ArrivalClass]
            rows.append((f"{metric}, {method}", *(_percent(above[group]) for group in [*groups, part])))
    return Table(
        key="exceedance",
        title="How often the truth is worse than predicted",
        note=f"% of points with load <= {PLANNED_LOAD} whose p95 is above the prediction; an upper one means 10.",
        columns=("p95 of", *map(str, ArrivalClass), "all"),
        rows=tuple(rows),
    )


def _percent(above: BoolArray) -> Cell:
    return f"{100.0 * float(np.mean(above)):.0f}" if len(above) else None
