"""Inter-token latency of the ML.ENERGY v3 runs over the batch, with no and with one calibration run per deployment.

A deployment ("curve") is one (model, GPU, number of GPUs, tensor parallel size, task). Its prior is the roofline of
its published facts. One run calibrates `evaluation.closed_loop`, which then predicts the other batches; a correction
learned on other deployments (LightGBM on pairs of calibration run and predicted run) goes on top. `max_num_seqs` stands
for the batch, never the measured one; the mean answer length is a fact of the workload.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy.evaluate import group_folds
from wattkeeper.energy.points import IndexArray
from wattkeeper.evaluation import closed_loop, measured_result, ml_energy_data, ml_energy_learned
from wattkeeper.evaluation.measured_result import Evaluation
from wattkeeper.evaluation.ml_energy_data import Curves

NAME = "ml-energy"
GOAL = 0.15
TARGETS = ("p50", "p90", "p95", "p99")
COLD = "cold, unseen backbone"
MIDDLE = "one run at the middle batch, unseen backbone"
RANDOM = "one run at a random batch, unseen backbone"
MIDDLE_CURVE = "one run at the middle batch, unseen curve"
LEARNED, PHYSICS = "closed form + correction", "closed form"
CONSTANT, ORIGIN, LINE = "same as the run", "proportional to batch", "a + b x concurrency"
CEILING, NEIGHBOURS = "inner runs from all others of the curve", "between both neighbours"
_LINE_SECONDS = (18.4e-3, 0.105e-3)
"""a and b of a published fit to one model; the calibration run scales both."""
_FOLDS = 6


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Calibration run `known` and predicted run `asked` of one curve each; positions in the table, (M,)."""

    known: IndexArray
    asked: IndexArray


def evaluate(
    folder: Path, *, seed: int = 0, check: bool = True, tell: Callable[[str], None] = lambda _: None
) -> Evaluation:
    """All methods on all splits; about a minute of one processor.

    Raises DataFileError: the runs are missing or not the expected ones.
    """
    curves = ml_energy_data.load_curves(folder, check=check)
    tell(f"{NAME}: calibrating with each of {len(curves.table)} runs")
    own = np.array(
        [closed_loop.calibrated(curves.points, row, curves.measured[row]) for row in range(len(curves.table))]
    )
    pairs = _all_pairs(curves.table)
    closed = _closed(curves, pairs.asked, own[pairs.known])
    features = ml_energy_learned.pair_features(curves, pairs.known, pairs.asked, own, closed)
    backbones = _folds(curves.table["group_backbone"], seed)
    frames = _cold(curves, own, backbones, tell)
    tell(f"{NAME}: learning corrections")
    by_backbone = _corrected(curves, pairs, closed, features, backbones, seed)
    by_curve = _corrected(curves, pairs, closed, features, _folds(curves.table["group_curve"], seed), seed)
    middle, drawn = _middle(curves.table), _random(curves.table, seed)
    for split, chosen, learned in ((MIDDLE, middle, by_backbone), (RANDOM, drawn, by_backbone)):
        at = np.flatnonzero(np.isin(pairs.known, chosen))
        known, asked = pairs.known[at], pairs.asked[at]
        shrunk = _calibrated_in_folds(curves, own, chosen, backbones)
        frames.append(_rows(split, LEARNED, curves, asked, learned[at]))
        frames.append(_rows(split, PHYSICS, curves, asked, _closed(curves, asked, [shrunk[row] for row in known])))
        for name, values in _baselines(curves, known, asked).items():
            frames.append(_rows(split, name, curves, asked, values))
    at = np.flatnonzero(np.isin(pairs.known, middle))
    frames.append(_rows(MIDDLE_CURVE, LEARNED, curves, pairs.asked[at], by_curve[at]))
    inner, between = _neighbours(curves)
    frames.append(_rows(CEILING, NEIGHBOURS, curves, inner, between))
    rows = pd.concat(frames, ignore_index=True)
    return Evaluation(
        name=NAME,
        title="ML.ENERGY v3, inter-token latency",
        goal=GOAL,
        targets=TARGETS,
        rows=rows,
        scores=measured_result.scores(
            rows, goal=GOAL, seed=seed, parts=("gpu", "task", "backbone"), split=MIDDLE, method=LEARNED
        ),
        notes=_NOTES,
        parameters={"curves": int(curves.table["group_curve"].nunique()), "runs": len(curves.table)},
    )


_NOTES = (
    "Errors are over all runs of a curve but the calibration run; intervals draw whole backbones.",
    "The constants of the roofline were once fitted to 290 of these runs, so cold figures flatter the closed form.",
    "Prompt lengths are not published: per-task assumptions, corrected by the calibration run.",
)


def _closed(curves: Curves, asked: IndexArray, found: Sequence[FloatArray] | FloatArray) -> FloatArray:
    """The closed form's seconds of `TARGETS` for each asked run, under what was found for its deployment; (M, 4)."""
    pairs = zip(asked, found, strict=True)
    return np.array([closed_loop.latencies(curves.points, row, each)[: len(TARGETS)] for row, each in pairs])


def _folds(groups: pd.Series, seed: int) -> IndexArray:
    return group_folds(groups, folds=_FOLDS, seed=seed)


def _all_pairs(table: pd.DataFrame) -> _Pairs:
    known, asked = [], []
    for rows in table.groupby("group_curve").indices.values():
        first, second = np.meshgrid(rows, rows, indexing="ij")
        apart = first != second
        known.append(first[apart])
        asked.append(second[apart])
    return _Pairs(known=np.concatenate(known), asked=np.concatenate(asked))


def _by_batch(table: pd.DataFrame) -> list[IndexArray]:
    """Positions of each curve's runs, by ascending batch."""
    batch = table["max_num_seqs"].to_numpy()
    groups = [np.asarray(rows, dtype=np.intp) for rows in table.groupby("group_curve").indices.values()]
    return [rows[np.argsort(batch[rows], kind="stable")] for rows in groups]


def _middle(table: pd.DataFrame) -> IndexArray:
    """One run per curve: the middle one by batch (of an even number, the larger)."""
    return np.array([rows[len(rows) // 2] for rows in _by_batch(table)])


def _random(table: pd.DataFrame, seed: int) -> IndexArray:
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(rows) for rows in _by_batch(table)])


def _task_priors(curves: Curves, own: FloatArray, training: IndexArray) -> dict[str, tuple[float, float, float]]:
    """Prior of ln q per task: the median of those training runs whose steps hold prompts often enough to tell."""
    telling = training[curves.points.prompts_per_step[training] > 0.05]
    tasks = curves.table["task"].to_numpy()
    _, prompt, noise = closed_loop.DEFAULT_PRIOR
    return {
        str(task): (
            0.0,
            float(np.median(chosen)) if len(chosen := own[telling[tasks[telling] == task], 1]) else prompt,
            noise,
        )
        for task in np.unique(tasks)
    }


def _calibrated_in_folds(
    curves: Curves, own: FloatArray, chosen: IndexArray, fold: IndexArray
) -> dict[int, FloatArray]:
    """Calibration by each chosen run, with the prior that the runs of other folds give its task."""
    found = {}
    tasks = curves.table["task"].to_numpy()
    for number in np.unique(fold):
        priors = _task_priors(curves, own, np.flatnonzero(fold != number))
        for row in chosen[fold[chosen] == number]:
            found[int(row)] = closed_loop.calibrated(curves.points, row, curves.measured[row], priors[str(tasks[row])])
    return found


def _cold(curves: Curves, own: FloatArray, fold: IndexArray, tell: Callable[[str], None]) -> list[pd.DataFrame]:
    """Predictions without any run of the deployment or of a relative."""
    tell(f"{NAME}: cold predictions")
    rows = np.arange(len(curves.table))
    tasks = curves.table["task"].to_numpy()
    by_fold = {number: _task_priors(curves, own, np.flatnonzero(fold != number)) for number in np.unique(fold)}
    physics = _closed(curves, rows, [np.array(by_fold[fold[row]][str(tasks[row])]) for row in rows])
    features = ml_energy_learned.run_features(curves, rows, physics)
    targets = np.log(curves.measured[:, : len(TARGETS)] / physics)
    learned = physics * np.exp(ml_energy_learned.held_out(features, targets, fold, np.ones(len(rows))))
    return [_rows(COLD, LEARNED, curves, rows, learned), _rows(COLD, PHYSICS, curves, rows, physics)]


def _corrected(
    curves: Curves, pairs: _Pairs, closed: FloatArray, features: FloatArray, fold: IndexArray, seed: int
) -> FloatArray:
    """Closed form times the correction learned on pairs of other folds; every calibration run weighs the same."""
    weight = 1.0 / np.bincount(pairs.known, minlength=len(curves.table))[pairs.known]
    targets = np.log(curves.measured[pairs.asked, : len(TARGETS)] / closed)
    return np.asarray(
        closed * np.exp(ml_energy_learned.held_out(features, targets, fold[pairs.asked], weight, seed=seed))
    )


def _baselines(curves: Curves, known: IndexArray, asked: IndexArray) -> dict[str, FloatArray]:
    """Seconds (M, 4) by scaling each percentile of the calibration run alike."""
    batch = curves.table["max_num_seqs"].to_numpy(dtype=np.float64)
    at_run = curves.measured[known, : len(TARGETS)]
    fixed, slope = _LINE_SECONDS
    line = (fixed + slope * batch[asked]) / (fixed + slope * batch[known])
    return {
        CONSTANT: at_run,
        ORIGIN: at_run * (batch[asked] / batch[known])[:, None],
        LINE: at_run * line[:, None],
    }


def _neighbours(curves: Curves) -> tuple[IndexArray, FloatArray]:
    """Inner runs of each curve, and what lies between their two neighbours in logarithms (a smooth curve's figure)."""
    inner, between = [], []
    batch = np.log(curves.table["max_num_seqs"].to_numpy(dtype=np.float64))
    logs = np.log(curves.measured[:, : len(TARGETS)])
    for rows in _by_batch(curves.table):
        for left, row, right in zip(rows, rows[1:], rows[2:], strict=False):
            share = (batch[row] - batch[left]) / (batch[right] - batch[left])
            inner.append(row)
            between.append(np.exp(logs[left] + share * (logs[right] - logs[left])))
    return np.array(inner), np.array(between)


def _rows(split: str, method: str, curves: Curves, asked: IndexArray, values: FloatArray) -> pd.DataFrame:
    chosen = curves.table.iloc[asked]
    backbones = chosen["group_backbone"].tolist()
    parts = []
    for column, target in enumerate(TARGETS):
        parts.append(
            measured_result.rows_of(
                split=split,
                method=method,
                target=target,
                group=backbones,
                x=chosen["max_num_seqs"].to_numpy(dtype=np.float64),
                measured=curves.measured[asked, column],
                predicted=values[:, column],
                parts={"gpu": chosen["gpu"].tolist(), "task": chosen["task"].tolist(), "backbone": backbones},
            )
        )
    return pd.concat(parts)
