"""A fitted model of `energy.learned` as plain numbers and text, for the model file, and back."""

from typing import Any

import numpy as np

from wattkeeper.domain import boosting
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import features, gp, terms
from wattkeeper.energy.calibration import CalibrationKernel
from wattkeeper.energy.learned import BOUND_LOG, Learned, Priors, Target
from wattkeeper.energy.prior import Prior

_DIGITS = 9
"""Significant digits of what is kept: the file answers as the fitted model to about one in a million."""


def plain(learned: Learned, residual_log: FloatArray) -> dict[str, Any]:
    """Parts of a model that JSON can hold. `residual_log` (N,) is what its process was conditioned on."""
    process = learned.process
    return {
        "target": learned.target,
        "terms": list(terms.NAMES),
        "columns": list(features.COLUMNS),
        "term_list": learned.term_list,
        "joules": _plain_prior(learned.priors.joules),
        "seconds": _plain_prior(learned.priors.seconds),
        "boosters": [booster.model_to_string() for booster in learned.boosters],
        "kernel": {
            "centre": _numbers(process.kernel.centre),
            "spread": _numbers(process.kernel.spread),
            "lengths_log": _numbers(process.kernel.lengths_log),
            "amplitude_log": _number(process.kernel.amplitude_log),
            "effects_log": [_numbers(row) for row in process.kernel.effects_log],
            "noise_log": _number(process.kernel.noise_log),
        },
        "facts": [_numbers(row) for row in process.rows.facts],
        "log2_batch": _numbers(process.rows.log2_batch),
        "groups": process.rows.groups.tolist(),
        "residual_log": _numbers(residual_log),
        "spread": _number(learned.spread),
        "calibration": {name: _number(value) for name, value in vars(learned.kernel).items()},
    }


def restored(parts: dict[str, Any]) -> Learned:
    """The model again.

    Raises ValueError, KeyError or TypeError: parts are missing, of another kind, or made for other terms or columns
    than this program has. ModelFileError: a booster that this LightGBM cannot read.
    """
    if (parts["terms"], parts["columns"]) != (list(terms.NAMES), list(features.COLUMNS)):
        raise ValueError("it was trained on other terms or columns than this program has")
    kernel = parts["kernel"]
    rows = gp.Inputs(
        facts=np.array(parts["facts"], dtype=np.float64),
        log2_batch=np.array(parts["log2_batch"], dtype=np.float64),
        groups=np.array(parts["groups"], dtype=np.str_),
    )
    process = gp.condition(
        gp.Kernel(
            centre=np.array(kernel["centre"], dtype=np.float64),
            spread=np.array(kernel["spread"], dtype=np.float64),
            lengths_log=np.array(kernel["lengths_log"], dtype=np.float64),
            amplitude_log=float(kernel["amplitude_log"]),
            effects_log=np.array(kernel["effects_log"], dtype=np.float64),
            noise_log=float(kernel["noise_log"]),
        ),
        rows,
        np.array(parts["residual_log"], dtype=np.float64),
        bound=BOUND_LOG,
    )
    boosters = tuple(boosting.read(str(text)) for text in parts["boosters"])
    if not boosters or not np.isfinite(process.weights).all():
        raise ValueError("boosters are missing or its rows are not finite")
    target: Target = "W per GPU" if parts["target"] == "W per GPU" else "J/token"
    return Learned(
        target=target,
        term_list=str(parts["term_list"]),
        priors=Priors(joules=_prior(parts["joules"]), seconds=_prior(parts["seconds"])),
        boosters=boosters,
        process=process,
        spread=float(parts["spread"]),
        kernel=CalibrationKernel(**{name: float(value) for name, value in parts["calibration"].items()}),
    )


def _plain_prior(prior: Prior) -> dict[str, Any]:
    return {
        "theta": _numbers(np.array(prior.theta)),
        "gpu_deviation": {name: _numbers(np.array(row)) for name, row in sorted(prior.gpu_deviation.items())},
        "used": list(prior.used),
    }


def _prior(parts: dict[str, Any]) -> Prior:
    return Prior(
        theta=tuple(map(float, parts["theta"])),
        gpu_deviation={str(name): tuple(map(float, row)) for name, row in parts["gpu_deviation"].items()},
        used=tuple(map(int, parts["used"])),
    )


def _number(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _numbers(values: FloatArray) -> list[float]:
    return [_number(float(value)) for value in values]
