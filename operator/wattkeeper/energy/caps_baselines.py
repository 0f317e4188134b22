"""Simple ways to foresee throughput under a power limit, to compare with, and the physics that the operator has."""

from collections.abc import Callable, Sequence

import numpy as np

from wattkeeper.domain import boosting
from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import caps, caps_operator
from wattkeeper.energy.caps import CapCurve

_RIDGE = 1e-3
OPERATOR, BELIEVING = "operator", "operator without caution"
"""The physics that plans, on the catalogue's profile of the card; the second believes its estimate of the watts."""
Baseline = Callable[[Sequence[CapCurve], CapCurve], FloatArray]
"""(training curves, curve) -> relative throughput at the curve's limits."""


def _columns(curve: CapCurve) -> FloatArray:
    facts = curve.facts
    drawn = facts.tdp_watts if facts.uncapped_watts is None else facts.uncapped_watts
    fixed = [facts.tdp_watts, float(facts.prefill), float(facts.moe), np.log2(facts.concurrency), drawn]
    shares = [curve.cap_watts / facts.tdp_watts, curve.cap_watts / drawn]
    return np.column_stack([*shares, *(np.full(len(curve.cap_watts), value) for value in fixed)])


def _mean(train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return np.full(len(curve.cap_watts), float(np.mean(np.concatenate([each.relative for each in train]))))


def _logarithms(table: FloatArray) -> FloatArray:
    return np.asarray(np.log(table + (table == 0.0)))


def _ridge(train: Sequence[CapCurve], curve: CapCurve, *, logarithms: bool) -> FloatArray:
    table, asked = np.vstack([_columns(each) for each in train]), _columns(curve)
    target = np.concatenate([each.relative for each in train])
    if logarithms:
        table, asked, target = _logarithms(table), _logarithms(asked), np.log(target)
    middle, width = table.mean(axis=0), table.std(axis=0) + 1e-9
    scaled = (table - middle) / width
    penalty = _RIDGE * len(table) * np.eye(table.shape[1])
    weights = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ (target - target.mean()))
    found = (asked - middle) / width @ weights + target.mean()
    return np.asarray(np.exp(found) if logarithms else np.maximum(found, 0.01))


def _linear(train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return _ridge(train, curve, logarithms=False)


def _log_linear(train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return _ridge(train, curve, logarithms=True)


def _trees(train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    table = np.vstack([_columns(each) for each in train])
    target = np.log(np.concatenate([each.relative for each in train]))
    settings = {
        "objective": "regression_l1", "num_leaves": 6, "min_data_in_leaf": 5, "learning_rate": 0.05, "seed": 0,
    }  # fmt: skip
    booster = boosting.fitted(table, target, settings=settings, rounds=200)
    return np.asarray(np.exp(boosting.predict(booster, _columns(curve))))


def _proportional(_train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return np.minimum(1.0, curve.cap_watts / curve.facts.reference_watts)


def _no_effect(_train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return np.ones(len(curve.cap_watts))


def _physics(_train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return caps.law(curve.facts, curve.cap_watts)


def _operator(_train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return caps_operator.relative(curve.facts, curve.cap_watts)


def _believing(_train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return caps_operator.relative(curve.facts, curve.cap_watts, cautious=False)


BASELINES: dict[str, Baseline] = {
    "mean": _mean,
    "linear": _linear,
    "log-linear": _log_linear,
    "hardware": _proportional,
    "no effect": _no_effect,
    "LightGBM": _trees,
    "physics": _physics,
    OPERATOR: _operator,
    BELIEVING: _believing,
}
"""`hardware` takes throughput to be proportional to the limit."""
