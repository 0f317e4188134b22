"""A correction of the closed form, learned on other deployments: factors and held-out predictions.

Factors are what is known before a batch is tried: facts of the deployment and the workload, the closed form's view of
the asked batch and, with a calibration run, everything that this run measured.
"""

import numpy as np
import pandas as pd

from wattkeeper.domain import boosting
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy.points import IndexArray
from wattkeeper.evaluation.ml_energy_data import Curves

_ROUNDS = 300
_PARAMETERS = {
    "objective": "l1",
    "learning_rate": 0.05,
    "num_leaves": 15,
    "min_data_in_leaf": 40,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "feature_fraction": 0.6,
    "lambda_l2": 5.0,
}
"""Set beforehand, not searched."""


def run_features(curves: Curves, rows: IndexArray, closed: FloatArray) -> FloatArray:
    """(N, F) factors of runs whose deployment was never measured; `closed` (N, 4) is the closed form's prediction."""
    table, points = curves.table.iloc[rows], curves.points
    numbers = table[
        ["max_num_seqs", "parameters", "activated_parameters", "num_gpus", "tensor_parallel", "output_tokens"]
    ]
    kinds = [
        pd.factorize(curves.table[name], sort=True)[0][rows]
        for name in ("gpu", "task", "weight_precision", "architecture")
    ]
    return np.column_stack(
        [
            np.log(numbers.to_numpy(dtype=np.float64)),
            *kinds,
            np.log(points.prompts_per_step[rows]),
            np.log(points.decode_seconds[rows]),
            np.log(closed / closed[:, :1])[:, 1:],
            curves.fixed_share[rows],
        ]
    )


def pair_features(
    curves: Curves, known: IndexArray, asked: IndexArray, calibrated: FloatArray, closed: FloatArray
) -> FloatArray:
    """(M, F) factors of predicted runs with a calibration run; `calibrated` (N, 3) is what each run taught."""
    batch, points = curves.table["max_num_seqs"].to_numpy(dtype=np.float64), curves.points
    logs = np.log(curves.measured[known])
    return np.column_stack(
        [
            run_features(curves, asked, closed),
            np.log(batch[asked] / batch[known]),
            np.log(batch[known]),
            calibrated[known],
            np.log(points.prompts_per_step[known]),
            np.log(points.decode_seconds[asked] / points.decode_seconds[known]),
            logs[:, 0],
            logs[:, 1:] - logs[:, :1],
        ]
    )


def held_out(
    features: FloatArray, targets: FloatArray, fold: IndexArray, weight: FloatArray, *, seed: int = 0
) -> FloatArray:
    """Predictions (N, T) of `targets` (N, T) for each fold by models of the other folds."""
    result = np.empty_like(targets)
    for number in np.unique(fold):
        held = fold == number
        for column in range(targets.shape[1]):
            model = boosting.fitted(
                features[~held], targets[~held, column], settings=_PARAMETERS | {"seed": seed}, rounds=_ROUNDS,
                weight=weight[~held],
            )  # fmt: skip
            result[held, column] = boosting.predict(model, features[held])
    return result
