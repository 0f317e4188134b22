"""How well the throughput under a power limit is foreseen for a curve or a card that was never seen.

Rows are readings below the highest limit of their curve; that one is what the others are relative to and is not scored.
Leave-one-curve-out and leave-one-card-out; everything is fitted on the other curves. Which model answers and the width
of its interval come from leaving out of those, in turn, a curve or a card as well (`energy.caps_methods`). *Read
at full power* means that the watts drawn there are known, as they are of every fleet that begins uncapped.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import caps_methods, powercap_data
from wattkeeper.energy.caps import CapCurve, CapFacts
from wattkeeper.energy.caps_baselines import BASELINES, BELIEVING, OPERATOR
from wattkeeper.energy.caps_methods import CapMethods, Chosen, Foreseen, Group, IndexArray
from wattkeeper.energy.held_out import HeldOut, optimistic_share

MODEL = "model"
TARGET = "throughput under cap"
FULL_POWER = ", read at full power"
"""Of a split: the uncapped watts are known."""
_NO_METHODS = ("measured", "cap_watts")
_LOW, _HIGH = "low ", "high "
"""Before a method's name: the ends of its interval."""
_JUDGED = (MODEL, f"{_LOW}{MODEL}", "physics", OPERATOR, BELIEVING)
"""Those whose too fast predictions are counted, the lower end of the interval among them."""


def curves(folder: Path) -> list[CapCurve]:
    """Measured curves with the watts drawn at their highest limit. Raises DataFileError."""
    table = powercap_data.load_cap_curves(folder)
    return [_curve(rows) for _, rows in table.groupby("curve", sort=True)]


def _curve(rows: pd.DataFrame) -> CapCurve:
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
        uncapped_watts=float(top["watts"]),
    )
    share = below["tokens_per_second"].to_numpy(dtype=np.float64) / float(top["tokens_per_second"])
    return CapCurve(facts=facts, cap_watts=below["cap_watts"].to_numpy(dtype=np.float64), relative=share)


def held_out(folder: Path, *, seed: int, report: Callable[[str], None]) -> list[HeldOut]:
    """All splits: with and without the uncapped watts, cold, after one and two readings. Raises DataFileError."""
    known = curves(folder)
    floor = _floor(known)
    found = []
    for watts_known in (False, True):
        for split, group in (("unseen curve", curve_of), ("unseen GPU", card_of)):
            report(f"power caps, {split}, uncapped watts {'known' if watts_known else 'unknown'}")
            named = f"{split}{FULL_POWER * watts_known}"
            found += _split(known, named, group, watts_known=watts_known, seed=seed, floor=floor)
    return found


def curve_of(curve: CapCurve) -> str:
    """A group of its own."""
    return curve.facts.curve


def card_of(curve: CapCurve) -> str:
    """All curves of a card are one group."""
    return curve.facts.gpu


def _split(
    known: Sequence[CapCurve], split: str, group: Group, *, watts_known: bool, seed: int, floor: float
) -> list[HeldOut]:
    parts: dict[str, list[_Part]] = {}
    chosen: dict[str, list[str]] = {}
    for number, name in enumerate(sorted({group(curve) for curve in known})):
        train = [curve for curve in known if group(curve) != name]
        model = CapMethods(train, watts_known=watts_known)
        choice = caps_methods.choose(train, group, watts_known=watts_known, seed=seed)
        seen = train if watts_known else [caps_methods.hidden(curve) for curve in train]
        for calibration, picked_one in choice.items():
            chosen.setdefault(calibration, []).append(picked_one.method)
        for curve in (curve for curve in known if group(curve) == name):
            asked = curve if watts_known else caps_methods.hidden(curve)
            belief = model.belief(curve)
            whole = {baseline: method(seen, asked) for baseline, method in BASELINES.items()}
            for calibration, picked in caps_methods.readings(curve, belief, seed=seed):
                rows = _rows(curve, model.foreseen(curve, belief, picked), choice[calibration], picked)
                rows |= _shifted(whole, curve, picked)
                parts.setdefault(calibration, []).append(_Part(name, curve.facts.curve, number, rows))
    return [
        _held(calibration, of, split=split, floor=floor, notes=(_choices(chosen[calibration]), _too_fast(of)))
        for calibration, of in parts.items()
    ]


class _Part:
    """Rows of one curve after one choice of readings."""

    def __init__(self, group: str, curve: str, fold: int, rows: dict[str, FloatArray]) -> None:
        self.rows = rows
        count = len(rows["measured"])
        self.groups, self.curves, self.folds = [group] * count, [curve] * count, [fold] * count


def _held(calibration: str, parts: Sequence[_Part], *, split: str, floor: float, notes: tuple[str, ...]) -> HeldOut:
    names = [name for name in parts[0].rows if name not in _NO_METHODS and not name.startswith((_LOW, _HIGH))]
    return HeldOut(
        data="power caps",
        target=TARGET,
        split=split,
        calibration=calibration,
        groups=np.array([each for part in parts for each in part.groups]),
        fold=np.array([each for part in parts for each in part.folds]),
        measured=_joined(parts, "measured"),
        predicted={name: _joined(parts, name) for name in names},
        interval={MODEL: (_joined(parts, f"{_LOW}{MODEL}"), _joined(parts, f"{_HIGH}{MODEL}"))},
        floor=floor,
        notes=notes,
        x=_joined(parts, "cap_watts"),
        x_name="power limit, W",
        series=np.array([each for part in parts for each in part.curves]),
    )


def _joined(parts: Sequence[_Part], name: str) -> FloatArray:
    return np.concatenate([part.rows[name] for part in parts])


def _choices(methods: Sequence[str]) -> str:
    counts = {method: methods.count(method) for method in caps_methods.METHODS if method in methods}
    return f"chosen on inner folds: {', '.join(f'{method} {count}x' for method, count in counts.items())}"


def _too_fast(parts: Sequence[_Part]) -> str:
    measured = _joined(parts, "measured")
    shares = [f"{name} {100 * optimistic_share(_joined(parts, name), measured):.0f} %" for name in _JUDGED]
    return f"more than 2 % too fast: {', '.join(shares)}"


def _rows(curve: CapCurve, found: dict[str, Foreseen], chosen: Chosen, picked: IndexArray) -> dict[str, FloatArray]:
    left = np.setdiff1d(np.arange(len(curve.cap_watts)), picked)
    answer = found[chosen.method]
    half = chosen.scale[chosen.method] * answer.sigma_log
    return {
        "measured": curve.relative[left],
        "cap_watts": curve.cap_watts[left],
        MODEL: np.exp(answer.log_relative),
        f"{_LOW}{MODEL}": np.exp(answer.log_relative - half),
        f"{_HIGH}{MODEL}": np.exp(answer.log_relative + half),
        **{method: np.exp(found[method].log_relative) for method in (caps_methods.KNEE, caps_methods.DRAWS)},
    }


def _shifted(whole: dict[str, FloatArray], curve: CapCurve, picked: IndexArray) -> dict[str, FloatArray]:
    """Baselines moved by the mean error of the readings, at the limits that were not read.

    The operator does not learn from readings under a limit; its rows stay as they are.
    """
    left = np.setdiff1d(np.arange(len(curve.cap_watts)), picked)
    moves = {name: len(picked) > 0 and name not in (OPERATOR, BELIEVING) for name in whole}
    shifts = {
        name: np.mean(np.log(curve.relative[picked] / values[picked])) if moves[name] else 0.0
        for name, values in whole.items()
    }
    return {name: np.minimum(1.0, values[left] * np.exp(shifts[name])) for name, values in whole.items()}


def _floor(known: Sequence[CapCurve]) -> float:
    """100 - MAPE of the straight line between the neighbours of each inner reading: what a smooth curve can reach."""
    misses = []
    for curve in known:
        for index in range(1, len(curve.cap_watts) - 1):
            ends = [index - 1, index + 1]
            between = np.interp(curve.cap_watts[index], curve.cap_watts[ends], curve.relative[ends])
            misses.append(abs(between / curve.relative[index] - 1.0))
    return float(100.0 * (1.0 - np.mean(misses)))
