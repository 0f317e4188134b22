"""Training of the latency correction: closed forms of simulated runs beside what the runs showed.

Each run gives rows at several percentiles, once with the dispersion of its path at all windows and once as a scrape of
some seconds would show it. Whole runs are held out, never single rows.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from wattkeeper.domain import boosting
from wattkeeper.domain.arrivals import POISSON, Dispersion
from wattkeeper.domain.boosting import Booster
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation.runs import PERCENTILES, Run
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.physics.profiles import serving_profile
from wattkeeper.queueing import correction, features
from wattkeeper.queueing.analysis import Asked, analyse
from wattkeeper.queueing.correction import Part, Payload
from wattkeeper.queueing.features import Tables
from wattkeeper.queueing.types import Candidates, SlaQuery
from wattkeeper.replica.types import BoolArray, IntArray

SCRAPE_SECONDS = (1.0, 3.0, 10.0)
"""Shortest windows of a dispersion as telemetry sees it; one of them per run."""
SLOPE = 0.7
"""Power of the closed form that the trees correct; below one, so that monotone trees can also take from it."""
_FOLDS = 2
_TREES = {
    "objective": "huber",
    "alpha": 0.1,
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.6,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 1.0,
}
_ROUNDS = 500
_SPREAD_TREES = {**_TREES, "objective": "regression", "num_leaves": 12, "min_data_in_leaf": 200}
_SPREAD_ROUNDS = 80
_COVERED = 0.9
_INSIDE = 0.002
"""Share of training rows beyond each end of what counts as a column's validated range."""
JUDGED_PERCENTILE = 95.0
JUDGED_LOAD = 0.82
LATENCIES = ("ttft", "tpot")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Training rows; arrays with one entry per row."""

    tables: Tables
    ttft_seconds: FloatArray
    """Simulated."""
    tpot_seconds: FloatArray
    run: IntArray
    """Index of the run that a row comes from."""
    kind: npt.NDArray[np.str_]
    """Arrival process."""
    judged: BoolArray
    """The rows that errors are stated for: p95, dispersion at all windows, load up to 0.82 of capacity."""


def query(run: Run, percentile: float, *, dispersion: Dispersion | None = None) -> SlaQuery:
    """The question that a run answers, with the iteration coefficients and the clock of its point."""
    point = run.point
    profile = replace(_any_profile(), iteration=point.iteration)
    workload = run.workload if dispersion is None else replace(run.workload, dispersion=dispersion)
    values = {
        "replicas": 1.0,
        "power_cap_watts": np.nan,
        "clock_ratio": point.clock_ratio,
        "max_num_seqs": float(point.max_num_seqs),
        "max_num_batched_tokens": float(point.max_num_batched_tokens),
        "kv_capacity_tokens": float(run.kv_tokens),
    }
    return SlaQuery(
        profile=profile,
        workload=workload,
        candidates=Candidates(**{name: np.array([value]) for name, value in values.items()}),
        ttft_percentile=percentile,
        tpot_percentile=percentile,
    )


@functools.cache
def _any_profile() -> ServingProfile:
    """Gives the clock range; its coefficients are always replaced."""
    return serving_profile(
        model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100", gpus_per_replica=1, engine=EngineSettings()
    )


def scraped(dispersion: Dispersion, *, finest_seconds: float) -> Dispersion | None:
    """The dispersion without its windows below the scrape interval; None where none is left."""
    pairs = [
        (window, index)
        for window, index in zip(dispersion.windows_seconds, dispersion.index, strict=True)
        if window >= finest_seconds
    ]
    if not pairs:
        return None
    return Dispersion(windows_seconds=tuple(w for w, _ in pairs), index=tuple(i for _, i in pairs))


def rows(runs: Iterable[Run], *, seed: int = 0) -> Rows:
    """Training rows of runs; candidates that the closed form calls overloaded have none."""
    tables: list[Tables] = []
    ttft: list[float] = []
    tpot: list[float] = []
    index: list[int] = []
    judged: list[bool] = []
    kind: list[str] = []
    for number, run in enumerate(runs):
        rng = np.random.default_rng((seed, run.point.seed))
        views = [run.workload.dispersion, scraped(run.workload.dispersion, finest_seconds=rng.choice(SCRAPE_SECONDS))]
        if run.point.arrivals.kind == "poisson":
            views.append(POISSON)  # what is assumed where nothing was measured yet
        for view, dispersion in enumerate(views):
            if dispersion is None:
                continue
            for place, percentile in enumerate(PERCENTILES):
                asked = query(run, percentile, dispersion=dispersion)
                found = analyse(
                    asked.profile, Asked.of([asked]), ttft_percentile=percentile, tpot_percentile=percentile
                )
                if found.tables is None:
                    continue
                tables.append(found.tables)
                ttft.append(run.ttft_seconds[place])
                tpot.append(run.tpot_seconds[place])
                index.append(number)
                kind.append(run.point.arrivals.kind)
                judged.append(view == 0 and percentile == JUDGED_PERCENTILE and run.point.load <= JUDGED_LOAD)
    return Rows(
        tables=Tables.joined(tables),
        ttft_seconds=np.array(ttft),
        tpot_seconds=np.array(tpot),
        run=np.array(index, dtype=np.int64),
        kind=np.array(kind),
        judged=np.array(judged),
    )


def fit(training: Rows, *, card: dict[str, Any], seed: int = 0) -> Payload:
    """Trees for both latencies, with upper bounds that hold for nine runs in ten that the trees have not seen."""
    parts = {name: _part(_columns(name), *_target(training, name), training.run, seed=seed) for name in LATENCIES}
    return Payload(ttft=parts["ttft"], tpot=parts["tpot"], card=card)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Relative errors of p95 on unseen runs of one arrival process; median and 90th percentile."""

    kind: str
    runs: int
    ttft: tuple[float, float]
    """Held-out runs, the process itself seen in others."""
    tpot: tuple[float, float]
    ttft_kind_unseen: tuple[float, float]
    """The process left out of training altogether."""
    tpot_kind_unseen: tuple[float, float]


def scores(training: Rows, *, seed: int = 0) -> list[Score]:
    """Errors by arrival process, each time on held-out runs."""
    seen: dict[str, FloatArray] = {}
    unseen: dict[str, dict[str, FloatArray]] = {}
    for name in LATENCIES:
        x, wanted = _target(training, name)
        signs = list(_columns(name).values())
        seen[name] = _held_out_residuals(signs, x, wanted, training.run, seed=seed)
        unseen[name] = {}
        for kind in np.unique(training.kind):
            others = training.kind != kind
            trees = _train(_TREES, signs, x[others], wanted[others], _ROUNDS, seed)
            found = ~others & training.judged
            unseen[name][str(kind)] = wanted[found] - boosting.predict(trees, x[found])
    result = []
    for kind in sorted(unseen["ttft"]):
        chosen = (training.kind == kind) & training.judged
        result.append(
            Score(
                kind=kind,
                runs=int(chosen.sum()),
                ttft=_spread(seen["ttft"][chosen]),
                tpot=_spread(seen["tpot"][chosen]),
                ttft_kind_unseen=_spread(unseen["ttft"][kind]),
                tpot_kind_unseen=_spread(unseen["tpot"][kind]),
            )
        )
    return result


def _spread(log_residual: FloatArray) -> tuple[float, float]:
    """Median and 90th percentile of the relative error of the prediction."""
    if not len(log_residual):
        return float("nan"), float("nan")
    error = np.abs(np.expm1(-log_residual))
    return float(np.median(error)), float(np.quantile(error, 0.9))


def _columns(name: str) -> dict[str, int]:
    return features.TTFT if name == "ttft" else features.TPOT


def _target(training: Rows, name: str) -> tuple[FloatArray, FloatArray]:
    """Columns, and what the trees have to say of each row."""
    table = training.tables
    if name == "ttft":
        x, ratio = table.ttft, training.ttft_seconds / table.lone_ttft_seconds
    else:
        x, ratio = table.tpot, training.tpot_seconds / table.lone_tpot_seconds
    return x, np.log(ratio) - SLOPE * x[:, 0]


def _held_out_residuals(
    signs: Sequence[int], x: FloatArray, wanted: FloatArray, run: IntArray, *, seed: int
) -> FloatArray:
    """What trees trained on other runs leave of each row."""
    residual = np.empty(len(x))
    fold = np.random.default_rng(seed).permutation(int(run.max()) + 1)[run] % _FOLDS
    for held in range(_FOLDS):
        out = fold == held
        trees = _train(_TREES, signs, x[~out], wanted[~out], _ROUNDS, seed)
        residual[out] = wanted[out] - boosting.predict(trees, x[out])
    return residual


def _part(columns: dict[str, int], x: FloatArray, wanted: FloatArray, run: IntArray, *, seed: int) -> Part:
    signs = list(columns.values())
    residual = _held_out_residuals(signs, x, wanted, run, seed=seed)
    spread = _train(_SPREAD_TREES, signs, x, np.abs(residual), _SPREAD_ROUNDS, seed)
    size = np.maximum(boosting.predict(spread, x), correction.LEAST_SPREAD)
    trees = _train(_TREES, signs, x, wanted, _ROUNDS, seed)
    return Part(
        columns=tuple(columns),
        low=tuple(map(float, np.quantile(x, _INSIDE, axis=0))),
        high=tuple(map(float, np.quantile(x, 1.0 - _INSIDE, axis=0))),
        slope=SLOPE,
        upper=max(0.0, float(np.quantile(residual / size, _COVERED))),
        trees=trees.model_to_string(),
        spread=spread.model_to_string(),
    )


def _train(
    settings: dict[str, Any], signs: Sequence[int], x: FloatArray, y: FloatArray, rounds: int, seed: int
) -> Booster:
    fixed = {
        "monotone_constraints": list(signs),
        "monotone_constraints_method": "intermediate",
        "seed": seed,
    }
    return boosting.fitted(x, y, settings={**settings, **fixed}, rounds=rounds)
