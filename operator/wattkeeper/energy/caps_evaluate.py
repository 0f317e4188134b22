"""How well the throughput under a power limit is foreseen for a curve or a card that was never seen.

Rows are readings below the highest limit of their curve; that one is what the others are relative to and is not scored.
Leave-one-curve-out and leave-one-card-out; everything is fitted on the other curves, the width of intervals by leaving
out of those, in turn, a curve or a card as well. *Designed* readings are the deepest limit, then the one in the middle.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lightgbm as lgb
import numpy as np
import numpy.typing as npt
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import caps, caps_operator, powercap_data
from wattkeeper.energy.baselines import predict_trees
from wattkeeper.energy.caps import READING_NOISE_LOG, CapCurve, CapFacts, CapModel
from wattkeeper.energy.held_out import HeldOut, optimistic_share

KNEE = "knee"
TARGET = "throughput under cap"
COVERAGE = 0.9
_NO_METHODS = ("measured", "low", "high", "slowest", "cap_watts")
_RANDOM_DRAWS = 4
_RIDGE = 1e-3
IndexArray = npt.NDArray[np.int_]
Baseline = Callable[[Sequence[CapCurve], CapCurve], FloatArray]
"""(training curves, curve) -> relative throughput at the curve's limits."""


def curves(folder: Path, *, watts_known: bool) -> list[CapCurve]:
    """Measured curves; the uncapped watts are hidden where they shall not be known. Raises DataFileError."""
    table = powercap_data.load_cap_curves(folder)
    return [_curve(rows, watts_known=watts_known) for _, rows in table.groupby("curve", sort=True)]


def _curve(rows: pd.DataFrame, *, watts_known: bool) -> CapCurve:
    rows = rows.sort_values("cap_watts")
    top, below = rows.iloc[-1], rows.iloc[:-1]
    facts = CapFacts(
        curve=str(top["curve"]),
        gpu=str(top["gpu"]),
        model=str(top["model"]),
        tdp_watts=float(top["tdp_watts"]),
        highest_cap_watts=float(top["cap_watts"]),
        prefill=top["phase"] == "prefill",
        moe=bool(top["moe"]),
        concurrency=float(top["concurrency"]),
        uncapped_watts=float(top["watts"]) if watts_known else None,
    )
    share = below["tokens_per_second"].to_numpy(dtype=np.float64) / float(top["tokens_per_second"])
    return CapCurve(facts=facts, cap_watts=below["cap_watts"].to_numpy(dtype=np.float64), relative=share)


def held_out(folder: Path, *, seed: int, report: Callable[[str], None]) -> list[HeldOut]:
    """All splits: with and without the uncapped watts, cold, after one and two readings."""
    floor = _floor(curves(folder, watts_known=True))
    found = []
    for watts_known in (False, True):
        known = curves(folder, watts_known=watts_known)
        for split, group in (("unseen curve", _curve_of), ("unseen GPU", _card_of)):
            report(f"power caps, {split}, uncapped watts {'known' if watts_known else 'unknown'}")
            found += _split(known, f"{split}{', watts known' * watts_known}", group, seed=seed, floor=floor)
    return found


def _curve_of(curve: CapCurve) -> str:
    return curve.facts.curve


def _card_of(curve: CapCurve) -> str:
    return curve.facts.gpu


def _split(
    known: Sequence[CapCurve], split: str, group: Callable[[CapCurve], str], *, seed: int, floor: float
) -> list[HeldOut]:
    parts: dict[str, list[dict[str, FloatArray]]] = {}
    names: dict[str, list[str]] = {}
    series: dict[str, list[str]] = {}
    folds: dict[str, list[int]] = {}
    for number, name in enumerate(sorted({group(curve) for curve in known})):
        train = [curve for curve in known if group(curve) != name]
        model, scales = CapModel(train), _scales(train, group, seed=seed)
        for curve in (curve for curve in known if group(curve) == name):
            for calibration, picked in _readings(curve, seed=seed):
                rows = _rows(model, train, curve, picked, scales[calibration])
                parts.setdefault(calibration, []).append(rows)
                names.setdefault(calibration, []).extend([name] * len(rows["measured"]))
                series.setdefault(calibration, []).extend([curve.facts.curve] * len(rows["measured"]))
                folds.setdefault(calibration, []).extend([number] * len(rows["measured"]))
    return [
        HeldOut(
            data="power caps",
            target=TARGET,
            split=split,
            calibration=calibration,
            groups=np.array(names[calibration]),
            fold=np.array(folds[calibration]),
            measured=_joined(rows, "measured"),
            predicted={name: _joined(rows, name) for name in rows[0] if name not in _NO_METHODS},
            interval={KNEE: (_joined(rows, "low"), _joined(rows, "high"))},
            floor=floor,
            notes=(_too_fast(rows),),
            x=_joined(rows, "cap_watts"),
            x_name="power limit, W",
            series=np.array(series[calibration]),
        )
        for calibration, rows in parts.items()
    ]


def _too_fast(rows: Sequence[dict[str, FloatArray]]) -> str:
    measured = _joined(rows, "measured")
    shares = [
        f"{name} {100 * optimistic_share(_joined(rows, name), measured):.0f} %"
        for name in (KNEE, "slowest", "physics", "operator")
    ]
    return f"more than 2 % too fast: {', '.join(shares)}"


def _joined(rows: Sequence[dict[str, FloatArray]], name: str) -> FloatArray:
    return np.concatenate([each[name] for each in rows])


def _rows(
    model: CapModel, train: Sequence[CapCurve], curve: CapCurve, picked: IndexArray, scale: float
) -> dict[str, FloatArray]:
    left = np.setdiff1d(np.arange(len(curve.cap_watts)), picked)
    knee = model.knee(curve.facts, curve.take(picked))
    rest = curve.take(left)
    middle = knee.relative(rest.cap_watts)
    half = scale * _half_width(knee.quantiles(rest.cap_watts, (0.16, 0.84)))
    rows = {
        "measured": rest.relative,
        "cap_watts": rest.cap_watts,
        "slowest": knee.slowest(rest.cap_watts),
        KNEE: middle,
        "low": middle * np.exp(-half),
        "high": middle * np.exp(half),
    }
    for name, baseline in BASELINES.items():
        whole = baseline(train, curve)
        shift = np.mean(np.log(curve.relative[picked] / whole[picked])) if len(picked) else 0.0
        rows[name] = np.minimum(1.0, whole[left] * np.exp(shift))
    return rows


def _half_width(quantiles: FloatArray) -> FloatArray:
    """One sigma of ln(relative throughput), the noise of a reading in it."""
    spread = (np.log(quantiles[1]) - np.log(quantiles[0])) / 2.0
    return np.asarray(np.hypot(spread, READING_NOISE_LOG))


def _scales(train: Sequence[CapCurve], group: Callable[[CapCurve], str], *, seed: int) -> dict[str, float]:
    """Sigmas that hold `COVERAGE` of the rows of groups left out of training, by number of readings."""
    ratios: dict[str, list[FloatArray]] = {}
    for name in sorted({group(curve) for curve in train}):
        model = CapModel([curve for curve in train if group(curve) != name])
        for curve in (curve for curve in train if group(curve) == name):
            for calibration, picked in _readings(curve, seed=seed):
                knee = model.knee(curve.facts, curve.take(picked))
                rest = curve.take(np.setdiff1d(np.arange(len(curve.cap_watts)), picked))
                miss = np.abs(np.log(rest.relative / knee.relative(rest.cap_watts)))
                half = _half_width(knee.quantiles(rest.cap_watts, (0.16, 0.84)))
                ratios.setdefault(calibration, []).append(miss / half)
    return {name: float(np.quantile(np.concatenate(values), COVERAGE)) for name, values in ratios.items()}


def _readings(curve: CapCurve, *, seed: int) -> Iterator[tuple[str, IndexArray]]:
    """Names of calibrations, and which readings they are given; limits ascend."""
    count = len(curve.cap_watts)
    yield "cold", np.array([], dtype=np.int_)
    for number, designed in ((1, [0]), (2, [0, count // 2])):
        rng = np.random.default_rng([seed, number, count])
        for _ in range(_RANDOM_DRAWS):
            yield f"+{number} random", np.sort(rng.permutation(count)[:number])
        yield f"+{number} designed", np.array(designed)


def _floor(known: Sequence[CapCurve]) -> float:
    """100 - MAPE of the straight line between the neighbours of each inner reading: what a smooth curve can reach."""
    misses = []
    for curve in known:
        for index in range(1, len(curve.cap_watts) - 1):
            ends = [index - 1, index + 1]
            between = np.interp(curve.cap_watts[index], curve.cap_watts[ends], curve.relative[ends])
            misses.append(abs(between / curve.relative[index] - 1.0))
    return float(100.0 * (1.0 - np.mean(misses)))


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
        "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1,
    }  # fmt: skip
    booster = lgb.train(settings, lgb.Dataset(table, label=target), num_boost_round=200)
    return np.asarray(np.exp(predict_trees(booster, _columns(curve))))


def _proportional(_train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return np.minimum(1.0, curve.cap_watts / curve.facts.reference_watts)


def _no_effect(_train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return np.ones(len(curve.cap_watts))


def _physics(_train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return caps.law(curve.facts, curve.cap_watts)


def _operator(_train: Sequence[CapCurve], curve: CapCurve) -> FloatArray:
    return caps_operator.relative(curve.facts, curve.cap_watts)


BASELINES: dict[str, Baseline] = {
    "mean": _mean,
    "linear": _linear,
    "log-linear": _log_linear,
    "hardware": _proportional,
    "no effect": _no_effect,
    "LightGBM": _trees,
    "physics": _physics,
    "operator": _operator,
}
"""`hardware` takes throughput to be proportional to the limit."""
