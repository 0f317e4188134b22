"""How accurate the energy model is on groups it has not seen: grouped cross-validation beside its baselines.

The score is 100 - MAPE (mean absolute percentage error), in percent, over all held-out rows, with a 90 % interval from
a bootstrap over groups (rows of one group are not independent). The conformal half-width of a fold is the 90 % quantile
of |ln(measured / predicted)| on the *other* folds; coverage is the share of held-out rows within it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import baselines, estimate, factors
from wattkeeper.energy.baselines import Method, Rows
from wattkeeper.energy.points import IndexArray

TargetName = Literal["watts", "joules_per_token"]
COVERAGE = 0.9
_RESAMPLES = 400
_PLAIN = tuple(index for index, factor in enumerate(factors.FACTORS) if not factor.physical)


@dataclass(frozen=True, kw_only=True)
class Score:
    """100 - MAPE in percent, and the ends of its 90 % group-bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """All methods on one data set, target and way of holding out."""

    data: str
    target: TargetName
    split: str
    rows: int
    groups: int
    scores: dict[str, Score]
    half_width_log: dict[str, float]
    """Quantile over all folds of |ln(measured / predicted)|, per method; the median where they differ by row."""
    coverage: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers with the digits that mean something."""
        return {
            **{key: value for key, value in asdict(self).items() if isinstance(value, (str, int))},
            "scores": {
                name: {key: round(number, 1) for key, number in asdict(score).items()}
                for name, score in self.scores.items()
            },
            "half_width_log": {name: round(number, 4) for name, number in self.half_width_log.items()},
            "coverage": {name: round(number, 3) for name, number in self.coverage.items()},
        }


def rows_of(
    table: pd.DataFrame, estimated: list[estimate.Estimated], target: TargetName, *, settings: tuple[str, ...] = ()
) -> tuple[Rows, pd.DataFrame]:
    """Rows of one prediction task and the table's rows they belong to, in the same order.

    `settings` are columns of the table that join the factors: how a finite run was set up.
    """
    order = np.concatenate([part.rows for part in estimated]).astype(np.intp)
    kept = table.iloc[order].reset_index(drop=True)
    scaled = np.vstack([factors.matrix(part.points, part.busy_watts) for part in estimated])
    gpus = kept["num_gpus"].to_numpy(dtype=np.float64)
    watts = np.concatenate([part.busy_watts for part in estimated])
    rated = np.concatenate([np.full(len(part.rows), part.points.profile.gpu.tdp_watts) for part in estimated])
    if target == "watts":
        measured = kept["gpu_watts"].to_numpy(dtype=np.float64)
        expected, hardware = watts, rated
    else:
        measured = kept["joules_per_token"].to_numpy(dtype=np.float64)
        expected = watts * gpus / np.concatenate([part.tokens_per_second for part in estimated])
        hardware = rated * gpus / np.concatenate([_roofline_tokens_per_second(part) for part in estimated])
    extra = kept[list(settings)].to_numpy(dtype=np.float64)
    rows = Rows(
        scaled=np.column_stack([scaled, np.log2(extra)]),
        raw=np.column_stack([factors.unscaled(scaled), extra]),
        plain=(*_PLAIN, *range(len(factors.FACTORS), len(factors.FACTORS) + len(settings))),
        target=measured,
        estimate=expected,
        hardware=hardware,
    )
    return rows, kept


def _roofline_tokens_per_second(part: estimate.Estimated) -> FloatArray:
    """Data-sheet throughput: the larger of reading the activated weights (two bytes each) and computing with them."""
    profile = part.points.profile
    active = profile.activated_parameters / profile.gpus_per_replica
    reading = 2.0 * active / profile.gpu.bandwidth_bytes_per_second
    computing = 2.0 * active * part.points.batch / profile.gpu.bf16_flops
    return part.points.batch / np.maximum(reading, computing)


def group_folds(groups: pd.Series, *, folds: int, seed: int) -> IndexArray:
    """Fold number of each row; a group is never split. Shuffled groups go to the fold with the fewest rows so far."""
    sizes = groups.value_counts().sort_index()
    order = np.random.default_rng(seed).permutation(len(sizes))
    filled = np.zeros(folds)
    fold_of: dict[Any, int] = {}
    for index in order:
        lightest = int(np.argmin(filled))
        fold_of[sizes.index[index]] = lightest
        filled[lightest] += sizes.iloc[index]
    return groups.map(fold_of).to_numpy()


def cross_validate(
    rows: Rows, groups: pd.Series, methods: dict[str, Method], *, folds: int, seed: int
) -> tuple[dict[str, FloatArray], IndexArray]:
    """Held-out predictions (N,) of each method, and the fold numbers."""
    fold = group_folds(groups, folds=min(folds, groups.nunique()), seed=seed)
    predicted = {name: np.empty(len(rows)) for name in methods}
    for number in np.unique(fold):
        held = fold == number
        for name, method in methods.items():
            predicted[name][held] = method(rows[~held], rows[held], seed)
    return predicted, fold


def evaluate(
    rows: Rows, groups: pd.Series, methods: dict[str, Method], *, data: str, target: TargetName, split: str,
    folds: int, seed: int, given: Mapping[str, tuple[FloatArray, FloatArray]] = MappingProxyType({}),
) -> SplitResult:  # fmt: skip
    """Scores, half-widths and coverage of all methods on one split.

    `given` are further methods: their held-out predictions on the same folds, with half-widths (ln) of their own.
    """
    predicted, fold = cross_validate(rows, groups, methods, folds=folds, seed=seed)
    logs = {name: np.abs(np.log(rows.target / np.maximum(values, 1e-9))) for name, values in predicted.items()}
    half_width = {name: float(np.quantile(values, COVERAGE)) for name, values in logs.items()}
    coverage = {name: _coverage(values, fold) for name, values in logs.items()}
    for name, (values, half) in given.items():
        predicted[name] = values
        half_width[name] = float(np.median(half))
        coverage[name] = float(np.mean(np.abs(np.log(rows.target / values)) <= half))
    errors = {name: np.abs(values / rows.target - 1.0) for name, values in predicted.items()}
    codes, _ = pd.factorize(groups)
    draws = _group_draws(codes, seed=seed)
    return SplitResult(
        data=data,
        target=target,
        split=split,
        rows=len(rows),
        groups=groups.nunique(),
        scores={name: _score(error, codes, draws) for name, error in errors.items()},
        half_width_log=half_width,
        coverage=coverage,
    )


def _group_draws(codes: IndexArray, *, seed: int) -> FloatArray:
    """How often each group is drawn in each bootstrap resample (resamples, groups)."""
    count = int(codes.max()) + 1
    picks = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    return np.stack([np.bincount(pick, minlength=count) for pick in picks]).astype(np.float64)


def _score(error: FloatArray, codes: IndexArray, draws: FloatArray) -> Score:
    total, size = np.bincount(codes, weights=error), np.bincount(codes)
    resampled = 100.0 * (1.0 - (draws @ total) / (draws @ size))
    low, high = np.quantile(resampled, [(1.0 - COVERAGE) / 2, (1.0 + COVERAGE) / 2])
    return Score(value=float(100.0 * (1.0 - error.mean())), low=float(low), high=float(high))


def _coverage(logs: FloatArray, fold: IndexArray) -> float:
    inside = np.zeros(len(logs))
    for number in np.unique(fold):
        held = fold == number
        inside[held] = logs[held] <= np.quantile(logs[~held], COVERAGE)
    return float(inside.mean())


def averaged(method: Method, *, seeds: int) -> Method:
    """The geometric mean of a method's predictions over several seeds."""

    def mean(train: Rows, test: Rows, seed: int) -> FloatArray:
        logs = [np.log(method(train, test, seed + offset)) for offset in range(seeds)]
        result: FloatArray = np.exp(np.mean(logs, axis=0))
        return result

    return mean


METHODS: dict[str, Method] = {
    "hardware": baselines.hardware,
    "linear": baselines.linear,
    "log-linear": baselines.log_linear,
    "LightGBM": baselines.plain_trees,
    "physics": baselines.physics,
    "hybrid": averaged(baselines.hybrid, seeds=baselines.BOOSTERS),
}
"""What is always reported side by side; `hybrid` is the catalogue's estimate times trees on its factors."""
