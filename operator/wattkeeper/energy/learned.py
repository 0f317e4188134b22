"""Joules and watts of steady runs: a fitted physical prior times what trees and a Gaussian process learn on top.

    ln joules per step = prior + (trees + process) / 2        ln watts likewise, its prior = joules / seconds of a step

Both priors are positive sums of the same terms (`energy.terms`, `energy.prior`), so that joules, watts and step time
of the estimate belong together. Trees (LightGBM, absolute loss) and the process (`energy.gp`) see the same facts, all
known before acting. Which list of terms is used, the textbook's or the full one, is chosen on inner folds of the
training rows; so are the spread of the intervals and the kernel with which a few readings of a new deployment are
conditioned on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize

from wattkeeper.domain import boosting
from wattkeeper.domain.boosting import Booster
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import features, gp, intervals, ml_energy_runs, prior, terms
from wattkeeper.energy.calibration import CalibrationKernel
from wattkeeper.energy.prior import REFERENCE_POWER_SHARE, Prior
from wattkeeper.energy.terms import Deployment, Steps
from wattkeeper.physics import catalogue, profiles, roofline

Target = Literal["J/token", "W per GPU"]
TARGETS: tuple[Target, ...] = ("J/token", "W per GPU")
IndexArray = npt.NDArray[np.int_]
COVERAGE = intervals.COVERAGE
INNER_FOLDS = 4
BOOSTERS = 3
TREES, LEAVES, RATE = 500, 12, 0.05
_TERM_LISTS = {"textbook": terms.TEXTBOOK, "full": tuple(range(len(terms.NAMES)))}
_PROCESS_ITERATIONS = 30
BOUND_LOG = 0.3
"""Of residuals that the process learns from; chosen on the development rows among 0.3 and none."""
NEW_GPU_SD_LOG = roofline.RELATIVE_ERROR
"""Spread that a type of GPU without training runs adds: the catalogue's error of a pair that nobody measured."""
_SIGMAS = 1.645
"""From one sigma to the half-width of a 90 % interval."""
_LEAST_SD = 0.01
_KERNEL_BOUNDS = ((0.01, 1.0), (0.01, 0.5), (0.5, 8.0), (0.01, 0.3))
"""Of level, shape, length in doublings, and noise."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """N steady closed-loop runs; arrays (N,) or (N, ...)."""

    term_seconds: FloatArray
    facts: FloatArray
    gpu: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    """Model, backbone, task and GPUs, deployment; (N, 4)."""
    batch: FloatArray
    gpus: FloatArray
    tdp_watts: FloatArray
    watts: FloatArray
    """Measured per GPU."""
    joules_per_token: FloatArray

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, index: npt.NDArray[np.generic]) -> "Runs":
        return Runs(**{name: value[index] for name, value in vars(self).items()})

    @property
    def joules_log(self) -> FloatArray:
        """Ln of the joules per step and GPU over the reference power: seconds at that power."""
        reference = REFERENCE_POWER_SHARE * self.tdp_watts
        return np.asarray(np.log(self.joules_per_token * self.batch / self.gpus / reference))

    @property
    def seconds_log(self) -> FloatArray:
        """Ln of the seconds of a step: joules over watts."""
        return np.asarray(np.log(self.joules_per_token * self.batch / self.gpus / self.watts))

    def measured(self, target: Target) -> FloatArray:
        """The target in its unit."""
        return self.joules_per_token if target == "J/token" else self.watts

    def from_log(self, target: Target, value: FloatArray) -> FloatArray:
        """What the models predict, in the target's unit."""
        if target == "W per GPU":
            return np.asarray(np.exp(value))
        return np.asarray(np.exp(value) * REFERENCE_POWER_SHARE * self.tdp_watts * self.gpus / self.batch)

    def log_target(self, target: Target) -> FloatArray:
        """What the models are fitted to."""
        return self.joules_log if target == "J/token" else np.asarray(np.log(self.watts))


def runs_of(table: pd.DataFrame) -> Runs:
    """Runs of the tidy table (`energy.data`), in its order; a column `kv_bytes_ratio` (`terms.Deployment`) is optional.

    A run always decodes `max_num_seqs` sequences; the measured batch is known only after acting and is not used. What
    the sequences did meanwhile is in `ml_energy_runs`.
    Raises UnknownModelError for a model without an architecture.
    """
    count = len(table)
    seconds, facts = np.zeros((count, len(terms.NAMES))), np.zeros((count, len(features.FACTS)))
    positions = pd.Series(np.arange(count), index=table.index)
    did = ml_energy_runs.sequences(table)
    if "kv_bytes_ratio" not in table:
        table = table.assign(kv_bytes_ratio=1.0)
    for _, rows in table.groupby(["model", "gpu", "num_gpus", "data_parallel", "kv_bytes_ratio"], sort=True):
        first = rows.iloc[0]
        deployment = Deployment(
            model=profiles.architecture(str(first["model"])),
            gpu=catalogue.gpu(str(first["gpu"])),
            gpus=int(first["num_gpus"]),
            data_parallel=int(first["data_parallel"]),
            kv_bytes_ratio=float(first["kv_bytes_ratio"]),
        )
        index = positions[rows.index].to_numpy()
        batch = rows["max_num_seqs"].to_numpy(dtype=np.float64)
        begun = batch * did.begun_per_token[index]
        steps = Steps(
            batch=batch,
            prefill_tokens=begun * did.new_share[index] * did.prompt_tokens[index],
            context_tokens=did.context_tokens[index],
            prompt_tokens=did.prompt_tokens[index],
            output_tokens=rows["output_tokens"].to_numpy(dtype=np.float64),
            multimodal=rows["multimodal"].to_numpy(dtype=np.float64),
            begun=begun,
            new_share=did.new_share[index],
        )
        seconds[index], facts[index] = terms.matrix(deployment, steps), features.facts(deployment, steps)
    names = table["gpu"].to_numpy(dtype=np.str_)
    return Runs(
        term_seconds=seconds,
        facts=facts,
        gpu=names,
        groups=gp.members(
            table["group_model"].tolist(),
            table["group_backbone"].tolist(),
            (table["task"] + "|" + table["gpu"] + "|" + table["num_gpus"].astype(int).astype(str)).tolist(),
            table["group_curve"].tolist(),
        ),
        batch=table["max_num_seqs"].to_numpy(dtype=np.float64),
        gpus=table["num_gpus"].to_numpy(dtype=np.float64),
        tdp_watts=np.array([catalogue.gpu(name).tdp_watts for name in names]),
        watts=table["gpu_watts"].to_numpy(dtype=np.float64),
        joules_per_token=table["joules_per_token"].to_numpy(dtype=np.float64),
    )


@dataclass(frozen=True, kw_only=True)
class Priors:
    """Joules and seconds of a step."""

    joules: Prior
    seconds: Prior

    @staticmethod
    def fitted(runs: Runs, used: Sequence[int]) -> "Priors":
        """To training runs."""
        joules, seconds = prior.fit(
            runs.term_seconds, runs.gpu.tolist(), runs.seconds_log, np.log(runs.watts / runs.tdp_watts),
            power_shares=terms.POWER_SHARES, used=used,
        )  # fmt: skip
        return Priors(joules=joules, seconds=seconds)

    def log_value(self, runs: Runs, target: Target) -> FloatArray:
        """The estimate of a target as the models see it, (N,)."""
        gpu = runs.gpu.tolist()
        joules = self.joules.log_value(runs.term_seconds, gpu)
        if target == "J/token":
            return joules
        reference = np.log(REFERENCE_POWER_SHARE * runs.tdp_watts)
        return np.asarray(joules + reference - self.seconds.log_value(runs.term_seconds, gpu))

    def columns(self, runs: Runs) -> FloatArray:
        """What the learned part sees."""
        return features.table(runs.facts, runs.term_seconds, runs.gpu.tolist(), self.joules, self.seconds)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Of N runs: ln of the target, its spread before it is scaled, and the prior's part; (N,)."""

    log_value: FloatArray
    sd_log: FloatArray
    prior_log: FloatArray


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A fitted model of one target.

    `spread` times `sd_log` is the half-width of the 90 % interval, for groups like those that the inner folds held out.
    """

    target: Target
    term_list: str
    priors: Priors
    boosters: tuple[Booster, ...]
    process: gp.Process
    spread: float
    kernel: CalibrationKernel

    def predict(self, runs: Runs) -> Predicted:
        """Cold predictions; wider for a type of GPU that no training run had."""
        found = _predicted(self.target, self.priors, self.boosters, self.process, runs)
        new = np.where(np.isin(runs.gpu, list(self.priors.joules.gpu_deviation)), 0.0, NEW_GPU_SD_LOG)
        return replace(found, sd_log=np.hypot(found.sd_log, _SIGMAS * new / self.spread))

    def kernel_on(self, gpu: str) -> CalibrationKernel:
        """What readings of a deployment on this GPU are conditioned with: on a new type more is open."""
        if gpu in self.priors.joules.gpu_deviation:
            return self.kernel
        return replace(self.kernel, level_sd_log=float(np.hypot(self.kernel.level_sd_log, NEW_GPU_SD_LOG)))

    def tree_shares(self, runs: Runs) -> FloatArray:
        """What each column adds to the prediction through the trees, over their mean; (N, len(features.COLUMNS))."""
        columns = self.priors.columns(runs)
        return np.asarray(np.mean([boosting.shares(booster, columns) for booster in self.boosters], axis=0) / 2.0)


def fit(runs: Runs, target: Target, *, inner: IndexArray, seed: int) -> Learned:
    """The model of training runs; `inner` (N,) numbers the folds for choices, with groups held out together."""
    term_list = _chosen(runs, inner)
    used = _TERM_LISTS[term_list]
    priors = Priors.fitted(runs, used)
    residual = runs.log_target(target) - priors.log_value(runs, target)
    columns = priors.columns(runs)
    process = gp.fit(_inputs(columns, runs), residual, iterations=_PROCESS_ITERATIONS, bound=BOUND_LOG)
    misses, spreads = _inner_misses(runs, target, inner, used, seed=seed)
    return Learned(
        target=target,
        term_list=term_list,
        priors=priors,
        boosters=_boosters(columns, residual, seed=seed),
        process=process,
        spread=intervals.by_unit(np.abs(misses) / spreads, intervals.units(runs.groups, inner)),
        kernel=calibration_kernel(misses, runs.batch, runs.groups[:, 3]),
    )


def spread(runs: Runs, target: Target, *, inner: IndexArray, seed: int, term_list: str) -> float:
    """`Learned.spread` for groups that other inner folds hold out."""
    misses, spreads = _inner_misses(runs, target, inner, _TERM_LISTS[term_list], seed=seed)
    return intervals.by_unit(np.abs(misses) / spreads, intervals.units(runs.groups, inner))


def _inner_misses(
    runs: Runs, target: Target, inner: IndexArray, used: Sequence[int], *, seed: int
) -> tuple[FloatArray, FloatArray]:
    """ln(measured / foreseen) and the spread of each run, by what other folds say alone; (N,)."""
    misses, spreads = np.zeros(len(runs)), np.ones(len(runs))
    for number in np.unique(inner):
        held = inner == number
        found = _foreseen(runs[~held], runs[held], target, used, seed=seed)
        misses[held] = runs[held].log_target(target) - found.log_value
        spreads[held] = found.sd_log
    return misses, spreads


def _foreseen(train: Runs, held: Runs, target: Target, used: Sequence[int], *, seed: int) -> Predicted:
    """Runs by what others say alone."""
    priors = Priors.fitted(train, used)
    residual, columns = train.log_target(target) - priors.log_value(train, target), priors.columns(train)
    process = gp.fit(_inputs(columns, train), residual, iterations=_PROCESS_ITERATIONS, bound=BOUND_LOG)
    return _predicted(target, priors, _boosters(columns, residual, seed=seed), process, held)


def _chosen(runs: Runs, inner: IndexArray) -> str:
    """The list of terms whose priors are best on inner folds, for joules and watts together."""

    def error(used: Sequence[int]) -> float:
        misses = 0.0
        for number in np.unique(inner):
            train, held = runs[inner != number], runs[inner == number]
            priors = Priors.fitted(train, used)
            for target in TARGETS:
                misses += len(held) * _percentage_error(priors.log_value(held, target), held.log_target(target))
        return misses

    return min(_TERM_LISTS, key=lambda name: error(_TERM_LISTS[name]))


def _percentage_error(log_value: FloatArray, truth_log: FloatArray) -> float:
    return float(np.abs(np.exp(log_value - truth_log) - 1.0).mean())


def _predicted(
    target: Target, priors: Priors, boosters: Sequence[Booster], process: gp.Process, runs: Runs
) -> Predicted:
    columns, base = priors.columns(runs), priors.log_value(runs, target)
    trees = np.mean([boosting.predict(booster, columns) for booster in boosters], axis=0)
    mean, sd = process.mean_and_sd(_inputs(columns, runs))
    noise = np.exp(process.kernel.noise_log)
    return Predicted(
        log_value=base + (trees + mean) / 2.0, sd_log=np.maximum(np.hypot(sd, noise), _LEAST_SD), prior_log=base
    )


def _inputs(columns: FloatArray, runs: Runs) -> gp.Inputs:
    return gp.Inputs(facts=columns, log2_batch=np.log2(runs.batch), groups=runs.groups)


def _boosters(columns: FloatArray, residual: FloatArray, *, seed: int) -> tuple[Booster, ...]:
    settings = {
        "objective": "regression_l1", "num_leaves": LEAVES, "learning_rate": RATE, "min_data_in_leaf": 15,
        "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1,
    }  # fmt: skip
    return tuple(
        boosting.fitted(columns, residual, settings=settings | {"seed": seed + number}, rounds=TREES)
        for number in range(BOOSTERS)
    )


def calibration_kernel(
    errors_log: FloatArray, batch: FloatArray, deployment: npt.NDArray[np.str_]
) -> CalibrationKernel:
    """How held-out errors of a deployment hang together over its batches: the most likely kernel for N rows."""
    members = [np.flatnonzero(deployment == name) for name in np.unique(deployment)]

    def cost(flat: FloatArray) -> float:
        kernel = _kernel(flat)
        total = 0.0
        for index in members:
            between = kernel.covariance(batch[index], batch[index]) + kernel.noise_sd_log**2 * np.eye(len(index))
            root = np.linalg.cholesky(between)
            total += float(
                np.log(np.diag(root)).sum() + 0.5 * np.square(np.linalg.solve(root, errors_log[index])).sum()
            )
        return total

    start = np.log([0.15, 0.05, 2.0, 0.04])
    bounds = [(np.log(low), np.log(high)) for low, high in _KERNEL_BOUNDS]
    return _kernel(optimize.minimize(cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40}).x)


def _kernel(flat: FloatArray) -> CalibrationKernel:
    level, shape, length, noise = map(float, np.exp(flat))
    return CalibrationKernel(level_sd_log=level, shape_sd_log=shape, length_log2_batch=length, noise_sd_log=noise)
