"""Tables of an evaluation of the latency model. All errors are relative and in percent, all shares in percent."""

from collections.abc import Callable, Sequence

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation import baselines, grid, methods, score, sla
from wattkeeper.evaluation.methods import Latencies
from wattkeeper.evaluation.rendering import Cell, Table
from wattkeeper.evaluation.runs import PERCENTILES, SLO_TTFT_SECONDS, Run
from wattkeeper.evaluation.score import BANDS, PLANNED_LOAD, ArrivalClass, Spread
from wattkeeper.evaluation.sla import Evaluation
from wattkeeper.queueing.types import BoolArray

METRICS: tuple[tuple[str, Callable[[Latencies], FloatArray]], ...] = (
    ("TTFT", lambda latencies: latencies.ttft_seconds),
    ("TPOT", lambda latencies: latencies.tpot_seconds),
)
P95 = 95.0
_P95 = PERCENTILES.index(P95)
_SLOW_SECONDS = max(SLO_TTFT_SECONDS)
"""Beyond every target: how far beyond decides nothing."""


def tables(evaluation: Evaluation) -> list[Table]:
    """All of them, in the order of the page."""
    made = [
        by_class(evaluation),
        *by_method(evaluation),
        by_percentile(evaluation),
        by_kind(evaluation),
        by_view(evaluation),
        apart(evaluation),
        capacity(evaluation),
        noise_floor(evaluation),
    ]
    return [table for table in made if table.rows]


def errors(
    evaluation: Evaluation, metric: int, where: BoolArray, *, method: str, view: str = sla.PATH, percentile: float = P95
) -> Spread | None:
    """Of one metric over some of the runs."""
    _, value = METRICS[metric]
    found = value(evaluation.latencies(view, method, percentile))
    real = value(evaluation.truth(view, percentile))
    return score.spread(score.relative_errors(found[where], real[where]))


def planned(evaluation: Evaluation) -> BoolArray:
    """Runs at loads that the operator plans for."""
    return np.asarray(score.loads(evaluation.runs) <= PLANNED_LOAD)


def of_class(evaluation: Evaluation, wanted: ArrivalClass) -> BoolArray:
    """Runs of one class of arrivals."""
    return where_run(evaluation.runs, lambda run: score.arrival_class(run) is wanted)


def where_run(runs: Sequence[Run], wanted: Callable[[Run], bool]) -> BoolArray:
    """Which runs a condition holds for."""
    return np.array([wanted(run) for run in runs], dtype=bool)


def _bands(evaluation: Evaluation) -> list[tuple[str, BoolArray]]:
    parts = [(_range(low, high), score.band(evaluation.runs, low, high)) for low, high in BANDS]
    return [*parts, (f"<= {PLANNED_LOAD}", planned(evaluation))]


def _range(low: float, high: float) -> str:
    if not low:
        return f"< {high:.2f}"
    return f"{low:.2f}-{high:.2f}" if np.isfinite(high) else f"> {low:.2f}"


def classes(evaluation: Evaluation) -> list[tuple[str, BoolArray]]:
    """Name and runs of every class of arrivals."""
    return [(str(each), of_class(evaluation, each)) for each in ArrivalClass]


def by_class(evaluation: Evaluation) -> Table:
    """The model's p95 by load and kind of arrivals."""
    bands = _bands(evaluation)
    rows: list[tuple[Cell, ...]] = [
        (
            f"{metric}, {name}",
            int(where.sum()),
            *(errors(evaluation, at, where & part, method=sla.MODEL) for _, part in bands),
        )
        for at, (metric, _) in enumerate(METRICS)
        for name, where in [*classes(evaluation), ("all", np.ones(len(evaluation.runs), dtype=bool))]
        if where.any()
    ]
    return Table(
        key="by_class",
        title="Error of p95 by load and arrivals",
        note="The latency model's best guess. Median / 90th percentile of the relative error, %.",
        columns=("p95 of", "points", *(name for name, _ in bands)),
        rows=tuple(rows),
    )


def by_method(evaluation: Evaluation) -> list[Table]:
    """All methods by load."""
    bands = _bands(evaluation)
    return [
        Table(
            key=f"by_method_{metric.lower()}",
            title=f"Error of p95 {metric} by load and method",
            note="All arrivals. Median / 90th percentile of the relative error, %; 100 is a prediction of nothing.",
            columns=("method", *(name for name, _ in bands)),
            rows=tuple(
                (method, *(errors(evaluation, at, part, method=method) for _, part in bands))
                for method in evaluation.methods
            ),
        )
        for at, (metric, _) in enumerate(METRICS)
    ]


def by_percentile(evaluation: Evaluation) -> Table:
    """p50, p95 and p99 of model and replay."""
    part = planned(evaluation)
    asked = [method for method in (sla.MODEL, sla.FRESH) if method in evaluation.methods]
    rows = [
        (
            f"{metric}, {name}, {method}",
            *(errors(evaluation, at, part & where, method=method, percentile=p) for p in (50.0, 95.0, 99.0)),
        )
        for at, (metric, _) in enumerate(METRICS)
        for name, where in classes(evaluation)
        for method in asked
        if where.any()
    ]
    return Table(
        key="by_percentile",
        title="Error by percentile",
        note=f"Load <= {PLANNED_LOAD}. Median / 90th percentile of the relative error, %.",
        columns=("", "p50", "p95", "p99"),
        rows=tuple(rows),
    )


def by_kind(evaluation: Evaluation) -> Table:
    """Every arrival process apart."""
    part = planned(evaluation)
    kinds: dict[str, list[bool]] = {}
    names = [_kind(evaluation, run) for run in evaluation.runs]
    for kind in sorted(set(names)):
        kinds[kind] = [name == kind for name in names]
    rows = []
    for kind, chosen in kinds.items():
        where = part & np.array(chosen)
        rows.append((kind, int(where.sum()), *(errors(evaluation, at, where, method=sla.MODEL) for at in (0, 1))))
    return Table(
        key="by_kind",
        title="Error of p95 by arrival process",
        note=f"The latency model's best guess at load <= {PLANNED_LOAD}. Median / 90th percentile, %.",
        columns=("arrivals", "points", "TTFT", "TPOT"),
        rows=tuple(rows),
    )


def _kind(evaluation: Evaluation, run: Run) -> str:
    recording = evaluation.grid.recordings.get(run.point.name)
    return run.point.arrivals.kind if recording is None else f"recorded: {recording.name}"


def by_view(evaluation: Evaluation) -> Table:
    """How much less is known by an operator than by an oracle."""
    part = planned(evaluation)
    rows = [
        (
            f"{metric}, {name}",
            *(errors(evaluation, at, part & where, method=sla.MODEL, view=v) for v in evaluation.views),
        )
        for at, (metric, _) in enumerate(METRICS)
        for name, where in classes(evaluation)
        if where.any()
    ]
    return Table(
        key="by_view",
        title="Error of p95 by what is known of the arrivals",
        note=(
            f"The latency model's best guess at load <= {PLANNED_LOAD}; rate and dispersion are measured on ... Where "
            "that is the first half, the second half is what is predicted. Median / 90th percentile, %."
        ),
        columns=("p95 of", *evaluation.views),
        rows=tuple(rows),
    )


def apart(evaluation: Evaluation) -> Table:
    """Points that are hard for a reason of their own."""
    runs, part = evaluation.runs, planned(evaluation)
    fitted = {engine.name for engine in grid.ENGINES if engine.fitted}
    groups: list[tuple[str, Callable[[Run], bool]]] = [
        (f"slow: simulated p95 TTFT above {_SLOW_SECONDS:g} s", lambda run: run.ttft_seconds[_P95] > _SLOW_SECONDS),
        ("not slow", lambda run: run.ttft_seconds[_P95] <= _SLOW_SECONDS),
        ("preempting", lambda run: run.preempted_share > score.PREEMPTING),
        ("not preempting", lambda run: run.preempted_share <= score.PREEMPTING),
        ("KV memory tight by design", lambda run: run.point.kv_share is not None),
        ("prefix hits", lambda run: run.point.hit_ratio > 0.0),
        *((f"lengths {name}", lambda run, name=name: run.point.lengths.name == name) for name in _lengths(runs)),
        ("clock lowered", lambda run: run.point.clock_ratio < 1.0),
        ("coefficients fitted", lambda run: run.point.engine in fitted),
        ("coefficients of the roofline", lambda run: run.point.engine not in fitted),
    ]
    rows = []
    for name, wanted in groups:
        where = part & where_run(runs, wanted)
        if where.any():
            rows.append((name, int(where.sum()), *(errors(evaluation, at, where, method=sla.MODEL) for at in (0, 1))))
    return Table(
        key="apart",
        title="Error of p95 by what is special",
        note=f"The latency model's best guess at load <= {PLANNED_LOAD}, all arrivals. Median / 90th percentile, %.",
        columns=("points that are", "points", "TTFT", "TPOT"),
        rows=tuple(rows),
    )


def _lengths(runs: Sequence[Run]) -> list[str]:
    return sorted({run.point.lengths.name for run in runs})


def capacity(evaluation: Evaluation) -> Table:
    """Predicted over simulated saturation."""
    runs = methods.saturating(evaluation.runs)
    real = np.array([run.saturation_rps for run in runs])
    moments = baselines.moments(runs)
    bound = baselines.binding(moments)
    asked = {
        sla.MODEL: methods.capacity_rps(runs),
        "closed form, eta .65": baselines.capacity(moments).requests_per_second,
        "closed form, eta 1": baselines.capacity(moments, kv_efficiency=1.0).requests_per_second,
        "WVA": baselines.wva_capacity_rps(runs),
    }
    rows: list[tuple[Cell, ...]] = []
    for name in ("slots", "budget", "KV"):
        where = bound == name
        if where.any():
            rows += [(name, int(where.sum()), who, *_ratio(found[where], real[where])) for who, found in asked.items()]
    return Table(
        key="capacity",
        title="Capacity against simulated saturation",
        note=(
            "All points, by what binds, told the lengths of just the requests that saturation was simulated with. "
            "Ratio of predicted to simulated; median / 90th percentile of the error, %."
        ),
        columns=("binds", "points", "method", "ratio, median", "ratio, p5", "ratio, p95", "error"),
        rows=tuple(rows),
    )


def _ratio(found: FloatArray, real: FloatArray) -> tuple[Cell, ...]:
    low, middle, high = np.percentile(found / real, (5.0, 50.0, 95.0))
    return (
        float(middle), float(low), float(high), score.spread(score.relative_errors(found, real))
    )  # fmt: skip


def noise_floor(evaluation: Evaluation) -> Table:
    """How far the two halves of one run are apart."""
    bands = _bands(evaluation)
    halves = {
        "TTFT": np.array([run.halves_ttft_p95 for run in evaluation.runs]),
        "TPOT": np.array([run.halves_tpot_p95 for run in evaluation.runs]),
    }
    rows = [
        (
            f"{metric}, {name}",
            *(
                score.spread(score.relative_errors(pairs[where & part, 0], pairs[where & part, 1]))
                for _, part in bands
            ),
        )
        for metric, pairs in halves.items()
        for name, where in classes(evaluation)
        if where.any()
    ]  # fmt: skip
    return Table(
        key="noise_floor",
        title="Noise floor",
        note="p95 of a run's first half as a prediction of its second half. Median / 90th percentile, %.",
        columns=("p95 of", *(name for name, _ in bands)),
        rows=tuple(rows),
    )
