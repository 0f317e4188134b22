"""How well joules and watts of a steady run are foreseen for a curve, a model, a backbone or a GPU never seen.

Rows are the runs of ML.ENERGY v3. A curve is one model on one task and GPU set over its batches; a backbone is all
variants of one architecture and size. Groups are never split between folds. Readings of a held-out deployment are
conditioned on as the operator does it (`energy.calibration`), with the kernel of the training folds; the baselines are
shifted by the mean error of the same readings. *Designed* readings: the middle of the curve; a fifth in from both ends;
both ends and the middle.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import baselines, calibration, data, estimate, evaluate, learned, ml_energy_runs
from wattkeeper.energy.baselines import Method, Rows
from wattkeeper.energy.calibration import Reading
from wattkeeper.energy.half_width import half_width
from wattkeeper.energy.held_out import HeldOut
from wattkeeper.energy.learned import IndexArray, Learned, Runs, Target

MODEL, PRIOR, CATALOGUE = "model", "fitted physics", "catalogue x trees"
CONTEXT, PROMPTS = "context_tokens", "tokens_per_output_token"
"""Columns that give the baselines what the model knows of the measured window, besides their own factors."""
SPLITS = ("curve", "model", "backbone", "GPU")
FOLDS = 5
READINGS = (1, 2, 3)
DRAWS = 4
"""Of random readings: each row is scored up to so many times."""
_SIGMAS = 1.645
"""Of a 90 % interval after readings, where the kernel's deviations come from held-out errors."""
FLOORS: Mapping[Target, float | None] = {"J/token": 96.0, "W per GPU": None}
"""Interpolation inside a curve from all its other points, the smooth ceiling (there are no repeated runs)."""


def _mean(train: Rows, test: Rows, _seed: int) -> FloatArray:
    return np.full(len(test), float(np.exp(np.log(train.target).mean())))


METHODS: dict[str, Method] = {
    "mean": _mean,
    "linear": baselines.linear,
    "log-linear": baselines.log_linear,
    "hardware": baselines.hardware,
    "LightGBM": baselines.plain_trees,
    "physics": baselines.physics,
    CATALOGUE: evaluate.METHODS["hybrid"],
}
"""`physics` is the catalogue's estimate as it is; the last is that times trees."""
SHIFTED = ("log-linear", "LightGBM", "physics", CATALOGUE)
"""Methods that are shown after readings; the others predict in a unit in which a factor means nothing."""
WITH_INTERVAL = ("log-linear", "LightGBM")
"""Baselines whose interval is reported beside the model's."""


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The runs in the forms that the methods want, row by row the same."""

    runs: Runs
    rows: dict[Target, Rows]
    groups: dict[str, pd.Series]


def tables(folder: Path) -> Tables:
    """Raises DataFileError: a data file is missing or not the expected one."""
    table = data.load_ml_energy(folder)
    did = ml_energy_runs.sequences(table)
    table[CONTEXT] = did.context_tokens
    table[PROMPTS] = 1.0 + did.begun_per_token * did.new_share * did.prompt_tokens
    estimated = estimate.closed_loop_runs(table)
    rows, kept = evaluate.rows_of(table, estimated, "joules_per_token", settings=(CONTEXT, PROMPTS))
    watts, _ = evaluate.rows_of(table, estimated, "watts", settings=(CONTEXT, PROMPTS))
    groups = {name: kept[f"group_{name}"] for name in ("curve", "model", "backbone")} | {"GPU": kept["gpu"]}
    return Tables(runs=learned.runs_of(kept), rows={"J/token": rows, "W per GPU": watts}, groups=groups)


def held_out(
    folder: Path, *, seed: int, report: Callable[[str], None], splits: tuple[str, ...] = SPLITS
) -> list[HeldOut]:
    """All splits and targets, cold and after one to three readings. Raises DataFileError."""
    given = tables(folder)
    found = []
    for split in splits:
        for target in learned.TARGETS:
            report(f"{data.ML_ENERGY_V3.name}, {target}, unseen {split}")
            found += _split(given, split, target, seed=seed)
    return found


def _split(given: Tables, split: str, target: Target, *, seed: int) -> list[HeldOut]:
    groups = given.groups[split]
    fold = np.asarray(evaluate.group_folds(groups, folds=min(FOLDS, groups.nunique()), seed=seed), dtype=np.int_)
    count = len(fold)
    predicted = {name: np.zeros(count) for name in (MODEL, PRIOR, *METHODS)}
    half = {name: np.zeros(count) for name in (MODEL, *WITH_INTERVAL)}
    models: dict[int, Learned] = {}
    for number in np.unique(fold):
        train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        # Where two groups are all there is, the inner folds go by backbone.
        by = groups if groups.iloc[train].nunique() >= learned.INNER_FOLDS else given.groups["backbone"]
        inner = np.asarray(evaluate.group_folds(by.iloc[train], folds=learned.INNER_FOLDS, seed=seed), dtype=np.int_)
        model = models[int(number)] = learned.fit(given.runs[train], target, inner=inner, seed=seed)
        held = given.runs[test]
        answer = model.predict(held)
        predicted[MODEL][test] = held.from_log(target, answer.log_value)
        predicted[PRIOR][test] = held.from_log(target, answer.prior_log)
        half[MODEL][test] = model.spread * answer.sd_log
        rows = given.rows[target]
        for name, method in METHODS.items():
            predicted[name][test] = np.maximum(method(rows[train], rows[test], seed), 1e-9)
        for name in WITH_INTERVAL:
            half[name][test] = half_width(rows[train], METHODS[name], inner, seed=seed)
    cold = HeldOut(
        data=data.ML_ENERGY_V3.name,
        target=target,
        split=f"unseen {split}",
        groups=groups.to_numpy(dtype=np.str_),
        fold=fold,
        measured=given.runs.measured(target),
        predicted=predicted,
        interval={name: _ends(predicted[name], half[name]) for name in half},
        floor=FLOORS[target],
        notes=(_lists(models),),
    )
    return [cold, *_calibrated(cold, given.runs, models, seed=seed)]


def _lists(models: Mapping[int, Learned]) -> str:
    names = [model.term_list for model in models.values()]
    return "terms chosen on inner folds: " + ", ".join(f"{name} {names.count(name)}x" for name in sorted(set(names)))


def _ends(middle: FloatArray, half_log: FloatArray) -> tuple[FloatArray, FloatArray]:
    return middle * np.exp(-half_log), middle * np.exp(half_log)


def _calibrated(cold: HeldOut, runs: Runs, models: Mapping[int, Learned], *, seed: int) -> Iterator[HeldOut]:
    for number in READINGS:
        for kind in ("random", "designed"):
            yield _after(cold, runs, models, number, kind, seed=seed)


def _after(cold: HeldOut, runs: Runs, models: Mapping[int, Learned], number: int, kind: str, *, seed: int) -> HeldOut:
    """The rows that are left once each deployment with more rows gave `number` readings; once per draw."""
    rng = np.random.default_rng([seed, number])
    deployments = runs.groups[:, 3]
    rows: list[IndexArray] = []
    halves: list[FloatArray] = []
    moves: dict[str, list[FloatArray]] = {name: [] for name in (MODEL, *SHIFTED)}
    for name in np.unique(deployments):
        index = np.flatnonzero(deployments == name)
        index = index[np.argsort(runs.batch[index], kind="stable")]
        if len(index) <= number:
            continue
        kernel = models[int(cold.fold[index[0]])].kernel_on(str(runs.gpu[index[0]]))
        for _ in range(DRAWS if kind == "random" else 1):
            picked = rng.permutation(len(index))[:number] if kind == "random" else designed(len(index), number)
            given, rest = index[picked], np.delete(index, picked)
            errors = {method: np.log(cold.measured[given] / cold.predicted[method][given]) for method in moves}
            readings = [
                Reading(batch=float(runs.batch[row]), error_log=float(error))
                for row, error in zip(given, errors[MODEL], strict=True)
            ]
            mean, sd = calibration.condition(kernel, readings, runs.batch[rest])
            rows.append(rest)
            halves.append(_SIGMAS * np.hypot(sd, kernel.noise_sd_log))
            for method, made in moves.items():
                made.append(mean if method == MODEL else np.full(len(rest), errors[method].mean()))
    kept = np.concatenate(rows)
    predicted = {name: cold.predicted[name][kept] * np.exp(np.concatenate(made)) for name, made in moves.items()}
    return HeldOut(
        data=cold.data,
        target=cold.target,
        split=cold.split,
        calibration=f"+{number} {kind}",
        groups=cold.groups[kept],
        fold=cold.fold[kept],
        measured=cold.measured[kept],
        predicted=predicted,
        interval={MODEL: _ends(predicted[MODEL], np.concatenate(halves))},
        floor=cold.floor,
    )


def designed(count: int, number: int) -> IndexArray:
    """Which of `count` points, sorted by batch, to measure when `number` may be."""
    if number == 1:
        return np.array([count // 2])
    if number == 2:
        return np.unique([round(0.2 * (count - 1)), round(0.8 * (count - 1))])
    return np.unique([0, count // 2, count - 1])
