"""Models of energy to compare with, all on the same rows and folds: hardware-centric, linear, log-linear, plain trees.

Each is fitted on the logarithm or the raw target of training rows and predicts held-out rows in the target's unit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wattkeeper.domain import boosting
from wattkeeper.domain.boosting import Booster
from wattkeeper.domain.workload import FloatArray

TREES = 150
LEAVES = 12
LEARNING_RATE = 0.08
BOOSTERS = 2
"""Boosters of different seeds whose predictions the shipped model averages."""
RIDGE = 1e-3
"""Strength of the ridge penalty per row, on standardised columns."""
_ROUNDING = 1e-9
"""Spread over mean below which a column is constant but for the last bits of its mean."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one prediction task: `scaled` and `raw` factors (N, F), `target` (N,), and what physics says."""

    scaled: FloatArray
    raw: FloatArray
    plain: tuple[int, ...]
    """Columns that do not rest on the physical estimate: all that the baselines may use."""
    target: FloatArray
    estimate: FloatArray
    """Physical estimate of the target."""
    hardware: FloatArray
    """Utilisation x rated power (over roofline throughput where the target is per token)."""

    def __getitem__(self, index: npt.NDArray[Any] | slice) -> "Rows":
        return Rows(
            scaled=self.scaled[index], raw=self.raw[index], plain=self.plain, target=self.target[index],
            estimate=self.estimate[index], hardware=self.hardware[index],
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.target)


Method = Callable[[Rows, Rows, int], FloatArray]
"""(training rows, rows to predict, seed) -> predictions (N,) in the target's unit."""


def fit_trees(features: FloatArray, target: FloatArray, *, seed: int, trees: int = TREES) -> Booster:
    """LightGBM with absolute loss, the same bits on every run: one thread, fixed seed, deterministic histograms."""
    parameters = {
        "objective": "regression_l1",
        "num_leaves": LEAVES,
        "learning_rate": LEARNING_RATE,
        "min_data_in_leaf": 20,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": seed,
    }
    return boosting.fitted(features, target, settings=parameters, rounds=trees)


def physics(train: Rows, test: Rows, _seed: int) -> FloatArray:
    """The physical estimate as it is."""
    del train
    return test.estimate


def scaled_physics(train: Rows, test: Rows, _seed: int) -> FloatArray:
    """The physical estimate times one fitted number (where the measurement covers more than the GPUs)."""
    return test.estimate * _scale(train.target, train.estimate)


def hardware(train: Rows, test: Rows, _seed: int) -> FloatArray:
    """Utilisation x rated power with one fitted scale."""
    return test.hardware * _scale(train.target, train.hardware)


def linear(train: Rows, test: Rows, _seed: int) -> FloatArray:
    """Ridge regression of the raw target on raw factors."""
    columns = list(train.plain)
    return _ridge(train.raw[:, columns], train.target, test.raw[:, columns])


def log_linear(train: Rows, test: Rows, _seed: int) -> FloatArray:
    """Ridge regression of the logarithm on scaled factors."""
    columns = list(train.plain)
    return np.exp(_ridge(train.scaled[:, columns], np.log(train.target), test.scaled[:, columns]))


def plain_trees(train: Rows, test: Rows, seed: int) -> FloatArray:
    """LightGBM on the logarithm of the target, without physics."""
    columns = list(train.plain)
    booster = fit_trees(train.scaled[:, columns], np.log(train.target), seed=seed, trees=2 * TREES)
    return np.exp(boosting.predict(booster, test.scaled[:, columns]))


def hybrid(train: Rows, test: Rows, seed: int) -> FloatArray:
    """Physical estimate times exp(LightGBM residual), the residual kept within what training saw."""
    residual = np.log(train.target / train.estimate)
    booster = fit_trees(train.scaled, residual, seed=seed)
    bounded = np.clip(boosting.predict(booster, test.scaled), residual.min(), residual.max())
    return test.estimate * np.exp(bounded)


def _scale(target: FloatArray, estimate: FloatArray) -> float:
    """The factor on `estimate` with the least mean absolute percentage error: a weighted median of the ratios."""
    order = np.argsort(target / estimate)
    weights = (estimate / target)[order]
    middle = int(np.searchsorted(np.cumsum(weights), weights.sum() / 2))
    return float((target / estimate)[order][middle])


def _ridge(features: FloatArray, target: FloatArray, ask: FloatArray) -> FloatArray:
    centre, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread <= _ROUNDING * np.abs(centre)] = 1.0  # constant in training: nothing was learned of it
    design = np.column_stack([np.ones(len(features)), (features - centre) / spread])
    penalty = RIDGE * len(features) * np.eye(design.shape[1])
    penalty[0, 0] = 0.0
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ target)
    return np.column_stack([np.ones(len(ask)), (ask - centre) / spread]) @ weights
