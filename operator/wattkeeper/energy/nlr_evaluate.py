"""How well joules per token of a finite open run are foreseen for a workload, a rate or an answer length never seen.

Rows are NLR's runs of 1,000 requests at one rate (`energy.data.load_nlr`); power is that of the node, CPUs included.
The physics is the fluid path of the run (`energy.estimate`): arrivals, a growing batch, perhaps saturation, and the
drain until the longest answer ends, with one scale fitted on training runs. The model is that times what LightGBM and a
Gaussian process learn of the logarithm of the rest, on average, with the settings of a run (rate, cap of the answers)
among the factors. Repeats of a run are one row to the process: their mean.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import baselines, data, estimate, evaluate, gp
from wattkeeper.energy.baselines import Method, Rows
from wattkeeper.energy.half_width import half_width
from wattkeeper.energy.held_out import HeldOut
from wattkeeper.energy.ml_energy_evaluate import CATALOGUE
from wattkeeper.energy.ml_energy_evaluate import METHODS as PLAIN

MODEL, TREES = "model", "physics x trees"
TARGET = "J/token"
FOLDS, INNER_FOLDS = 6, 5
SETTINGS = ("requests_per_second", "output_cap_tokens")
_PROCESS_ITERATIONS = 30


def _model(train: Rows, test: Rows, seed: int) -> FloatArray:
    trees = evaluate.METHODS["hybrid"](train, test, seed)
    scaled = np.log(baselines.scaled_physics(train, test, seed))
    left = np.log(train.target) - np.log(baselines.scaled_physics(train, train, seed))
    _, first, cell = np.unique(np.round(train.scaled, 1), axis=0, return_index=True, return_inverse=True)
    means = np.bincount(cell.ravel(), weights=left) / np.bincount(cell.ravel())
    process = gp.fit(_inputs(train[first]), means, iterations=_PROCESS_ITERATIONS)
    return np.asarray(np.exp((np.log(trees) + scaled + process.mean(_inputs(test))) / 2.0))


def _inputs(rows: Rows) -> gp.Inputs:
    """The rate stands where closed-loop runs have their batch; there is one deployment only."""
    return gp.Inputs(
        facts=rows.scaled, log2_batch=rows.scaled[:, -len(SETTINGS)], groups=gp.members(["nlr"] * len(rows))
    )


METHODS: dict[str, Method] = {
    MODEL: _model,
    TREES: evaluate.METHODS["hybrid"],
    **{name: method for name, method in PLAIN.items() if name not in ("physics", CATALOGUE)},
    "physics": baselines.scaled_physics,
}
WITH_INTERVAL = (MODEL, "log-linear", "LightGBM")


def held_out(folder: Path, *, seed: int, report: Callable[[str], None]) -> list[HeldOut]:
    """All splits. Raises DataFileError: the data file is missing or not the expected one."""
    table = data.load_nlr(folder)
    for row in data.failed_runs(folder):
        report(f"left out: {row}")
    rows, kept = evaluate.rows_of(table, estimate.open_runs(table), "joules_per_token", settings=SETTINGS)
    groups = {
        "workload": kept["group_workload"],
        "rate": kept["group_rate"],
        "length of answers": kept["output_cap_tokens"].astype(str),
        "kind of prompts": kept["group_workload"].str.partition("|")[0],
    }
    cells = kept["group_workload"] + "|" + kept["group_rate"]
    rate = kept["requests_per_second"].to_numpy(dtype=np.float64)
    workload = kept["group_workload"].to_numpy(dtype=np.str_)
    found = []
    for split, group in groups.items():
        report(f"{data.NLR_H100.name}, {TARGET}, unseen {split}")
        held = _split(rows, group, f"unseen {split}", floor=_floor(rows.target, cells), seed=seed)
        found.append(dataclasses.replace(held, x=rate, x_name="requests per second", series=workload))
    return found


def _split(rows: Rows, groups: pd.Series, split: str, *, floor: float, seed: int) -> HeldOut:
    fold = np.asarray(evaluate.group_folds(groups, folds=min(FOLDS, groups.nunique()), seed=seed), dtype=np.int_)
    predicted = {name: np.zeros(len(rows)) for name in METHODS}
    half = {name: np.zeros(len(rows)) for name in WITH_INTERVAL}
    for number in np.unique(fold):
        held = fold == number
        for name, method in METHODS.items():
            predicted[name][held] = np.maximum(method(rows[~held], rows[held], seed), 1e-9)
        known = groups[~held]
        inner = np.asarray(
            evaluate.group_folds(known, folds=min(INNER_FOLDS, known.nunique()), seed=seed), dtype=np.int_
        )
        for name in WITH_INTERVAL:
            half[name][held] = half_width(rows[~held], METHODS[name], inner, seed=seed)
    return HeldOut(
        data=f"{data.NLR_H100.name} (node power)",
        target=TARGET,
        split=split,
        groups=groups.to_numpy(dtype=np.str_),
        fold=fold,
        measured=rows.target,
        predicted=predicted,
        interval={name: (predicted[name] * np.exp(-half[name]), predicted[name] * np.exp(half[name])) for name in half},
        floor=floor,
    )


def _floor(target: FloatArray, cells: pd.Series) -> float:
    """100 - MAPE of the mean of a cell's repeats: what differs between two runs of the same thing."""
    means = pd.Series(target).groupby(cells.to_numpy()).transform("mean").to_numpy()
    return float(100.0 * (1.0 - np.abs(means / target - 1.0).mean()))
