"""What drives energy in public measured runs: contributions of dimensions, causes and factors, and a check on them.

Three views of the same runs, each with a 90 % interval from a bootstrap over backbones:
contributions of the shipped model's prediction of each run against one typical run (`energy.contributions`);
TreeSHAP of its learned part by factor; and, without any physics, what a plain LightGBM loses on models it has not seen
where the columns of one dimension are shuffled among the held-out rows (permutation importance, Breiman 2001).

All of it is association in these data: nobody turned one knob and held the others.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import baselines, columns, contributions, data, estimate, evaluate, factors
from wattkeeper.energy.baselines import Rows
from wattkeeper.energy.contributions import CAUSES, DIMENSIONS, State
from wattkeeper.energy.estimate import Estimated
from wattkeeper.energy.model import EnergyModel
from wattkeeper.energy.points import IndexArray

TARGETS = ("W per GPU", "J/token")
_RESAMPLES = 400
_SHUFFLES = 3
_FOLDS = 5
_COVERAGE = 0.9


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over runs and the ends of its 90 % group-bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Moved:
    """Mean size of what one cause or factor does to ln(target)."""

    name: str
    dimension: str
    description: str
    size: Interval


@dataclass(frozen=True, kw_only=True)
class TargetAnalysis:
    """All of one target."""

    target: str
    dimensions: dict[str, Interval]
    """Mean |contribution| in ln units."""
    causes: tuple[Moved, ...]
    """Largest first."""
    interactions: FloatArray
    """(4, 4): mean |Shapley interaction| in ln units, in the order of `DIMENSIONS`."""
    lost: dict[str, Interval]
    """By dimension: what shuffling its columns adds to `error_log` of a plain LightGBM."""
    error_log: float
    """Mean |ln(measured / predicted)| of that LightGBM on models it has not seen."""


@dataclass(frozen=True, kw_only=True)
class FactorAnalysis:
    """What `wattkeeper evaluate factors` found."""

    data: str
    rows: int
    groups: int
    energy_model: str
    typical: str
    """The run that all are compared with, in words."""
    targets: tuple[TargetAnalysis, ...]
    learned: tuple[Moved, ...]
    """TreeSHAP of the trees of the learned part of watts, by column, largest first."""
    never_moved: tuple[tuple[str, str, str], ...]
    """Name, dimension and why, of what these data do not vary."""


def analyse(folder: Path, *, seed: int = 0, report: Callable[[str], None] = lambda _: None) -> FactorAnalysis:
    """Analyse the ML.ENERGY runs. Raises DataFileError: a data file is missing or not the expected one."""
    report("loading measured runs")
    table = data.load_ml_energy(folder)
    parts = estimate.closed_loop_runs(table)
    energy = EnergyModel.load()
    watts_rows, kept = evaluate.rows_of(table, parts, "watts")
    token_rows, _ = evaluate.rows_of(table, parts, "joules_per_token")
    codes, names = pd.factorize(kept["group_backbone"])
    draws = _draws(len(names), seed=seed)
    typical = _typical(watts_rows)
    targets = []
    for target, rows in zip(TARGETS, (watts_rows, token_rows), strict=True):
        report(f"{target}: contributions of {len(rows)} runs")
        by_cause, interactions = _contributions(parts, typical, target, energy)
        report(f"{target}: permutation check")
        error_log, lost = _permuted(rows, kept["group_model"], codes, draws, seed=seed)
        targets.append(
            TargetAnalysis(
                target=target,
                dimensions={
                    each.value: _interval(np.abs(by_cause[:, contributions.columns(each)].sum(axis=1)), codes, draws)
                    for each in DIMENSIONS
                },
                causes=_sorted(
                    Moved(
                        name=cause.name, dimension=cause.dimension.value, description=cause.description,
                        size=_interval(np.abs(by_cause[:, index]), codes, draws),
                    )
                    for index, cause in enumerate(CAUSES)
                ),
                interactions=np.abs(interactions).mean(axis=0),
                lost=lost,
                error_log=error_log,
            )
        )  # fmt: skip
    report("TreeSHAP of the learned part")
    shap = np.vstack([energy.learned_by_column(part.points) for part in parts])
    shap = shap - shap.mean(axis=0)
    learned = _sorted(
        Moved(
            name=column.name, dimension=column.dimension.value, description=column.description,
            size=_interval(np.abs(shap[:, index]), codes, draws),
        )
        for index, column in enumerate(columns.COLUMNS)
    )  # fmt: skip
    return FactorAnalysis(
        data=data.ML_ENERGY_V3.name,
        rows=len(kept),
        groups=len(names),
        energy_model=energy.version,
        typical=_words(kept.iloc[typical]),
        targets=tuple(targets),
        learned=learned,
        never_moved=(*_constant(targets), *_UNLEARNED),
    )


_UNLEARNED = tuple((each.name, each.dimension.value, each.reason) for each in factors.UNLEARNED_FACTORS)


def _constant(targets: Sequence[TargetAnalysis]) -> Iterator[tuple[str, str, str]]:
    """Causes that move no target, as far as no factor tells it."""
    told = {name for name, _, _ in _UNLEARNED}
    moving = {each.name for target in targets for each in target.causes if each.size.mean > 0}
    for cause in CAUSES:
        if cause.name not in moving | told:
            yield cause.name, cause.dimension.value, f"{cause.description}: constant in these runs"


def _sorted(moved: Iterable[Moved]) -> tuple[Moved, ...]:
    return tuple(sorted(moved, key=lambda each: -each.size.mean))


def _typical(rows: Rows) -> int:
    """The run whose factors are nearest to the median of all."""
    scaled = rows.scaled
    width = np.maximum(scaled.std(axis=0), 1e-9)
    return int(np.argmin((np.abs(scaled - np.median(scaled, axis=0)) / width).sum(axis=1)))


def _words(run: pd.Series) -> str:
    return (
        f"{run['model']} on {run['num_gpus']:.0f} x {run['gpu']}, {run['max_num_seqs']:.0f} sequences at once, "
        f"{run['prompt_tokens']:.0f} prompt and {run['output_tokens']:.0f} answer tokens"
    )


def _contributions(
    parts: Sequence[Estimated], typical: int, target: str, energy: EnergyModel
) -> tuple[FloatArray, FloatArray]:
    """Contributions (N, len(CAUSES)) and interactions (N, 4, 4) of all runs, in the order of the parts."""

    def price(states: Sequence[State]) -> list[FloatArray]:
        found = energy.busy_watts([state.points for state in states])
        if target == TARGETS[0]:
            return found
        return [
            watts * state.points.profile.gpus_per_replica * state.points.step_seconds / state.points.batch
            for state, watts in zip(states, found, strict=True)
        ]

    starts = np.cumsum([0, *(len(part.rows) for part in parts)])
    owner = int(np.searchsorted(starts, typical, side="right")) - 1
    run = parts[owner].points.take(np.array([typical - starts[owner]]))
    by_cause, interactions = [], []
    for part in parts:
        count = len(part.rows)
        ones = np.ones(count)
        reference = State(points=run.take(np.zeros(count, dtype=np.intp)), busy=ones, replicas=ones)
        found = contributions.contributions(reference, State(points=part.points, busy=ones, replicas=ones), price)
        by_cause.append(found.by_cause)
        interactions.append(found.interactions)
    return np.vstack(by_cause), np.concatenate(interactions)


def _permuted(
    rows: Rows, groups: pd.Series, codes: IndexArray, draws: FloatArray, *, seed: int
) -> tuple[float, dict[str, Interval]]:
    """Error of the plain trees on unseen groups, and what shuffling the columns of each dimension adds to it."""
    fold = evaluate.group_folds(groups, folds=_FOLDS, seed=seed)
    rng = np.random.default_rng(seed)
    kept = {
        dimension: [index for index in rows.plain if factors.FACTORS[index].dimension is dimension]
        for dimension in DIMENSIONS
    }
    error = np.zeros(len(rows))
    worse = {dimension: np.zeros(len(rows)) for dimension in DIMENSIONS}
    for number in np.unique(fold):
        held = np.flatnonzero(fold == number)
        train, test = rows[fold != number], rows[held]
        # One fit: the trees are asked about the rows as they are and with each dimension shuffled.
        shuffled = [
            (dimension, _shuffled(test, columns, rng)) for dimension, columns in kept.items() for _ in range(_SHUFFLES)
        ]
        asked = replace(
            test,
            scaled=np.vstack([test.scaled, *(each.scaled for _, each in shuffled)]),
            raw=np.vstack([test.raw, *(each.raw for _, each in shuffled)]),
        )
        answers = np.split(baselines.plain_trees(train, asked, seed), 1 + len(shuffled))
        error[held] = np.abs(np.log(answers[0] / test.target))
        for (dimension, _), answer in zip(shuffled, answers[1:], strict=True):
            worse[dimension][held] += np.abs(np.log(answer / test.target)) / _SHUFFLES
    lost = {dimension.value: _interval(worse[dimension] - error, codes, draws) for dimension in DIMENSIONS}
    return float(error.mean()), lost


def _shuffled(rows: Rows, columns: Sequence[int], rng: np.random.Generator) -> Rows:
    """Rows with these columns taken together from other rows."""
    order = rng.permutation(len(rows))
    scaled, raw = rows.scaled.copy(), rows.raw.copy()
    scaled[:, columns], raw[:, columns] = rows.scaled[order][:, columns], rows.raw[order][:, columns]
    return replace(rows, scaled=scaled, raw=raw)


def _draws(groups: int, *, seed: int) -> FloatArray:
    """How often each group is drawn in each resample (resamples, groups)."""
    picks = np.random.default_rng(seed).integers(groups, size=(_RESAMPLES, groups))
    return np.stack([np.bincount(pick, minlength=groups) for pick in picks]).astype(np.float64)


def _interval(values: FloatArray, codes: IndexArray, draws: FloatArray) -> Interval:
    resampled = (draws @ np.bincount(codes, weights=values)) / (draws @ np.bincount(codes))
    low, high = np.quantile(resampled, [(1.0 - _COVERAGE) / 2, (1.0 + _COVERAGE) / 2])
    return Interval(mean=float(values.mean()), low=float(low), high=float(high))
