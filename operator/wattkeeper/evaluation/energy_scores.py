"""Scores of held-out predictions of energy: accuracy with an interval, coverage and width of intervals, as tables.

Accuracy is 100 - MAPE in percent over all held-out rows; its 90 % interval comes from a bootstrap over groups, for rows
of one group are not independent. The width of an interval is the median of sqrt(high / low) - 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattkeeper.energy.held_out import HeldOut
from wattkeeper.evaluation.rendering import Table

COVERAGE = 0.9
_RESAMPLES = 400
_WORST = -999.0
"""Below this a score says nothing but "useless"."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """100 - MAPE in percent, and the ends of its 90 % group-bootstrap interval."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        """For tables."""
        if self.value < _WORST:
            return "useless"
        return f"{self.value:.1f} ({max(self.low, _WORST):.0f}-{self.high:.0f})"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """How good a 90 % interval is."""

    coverage: float
    """Share of rows inside, 0..1."""
    worst: float
    """Coverage of the worst fold."""
    width: float
    """Relative half-width, median."""


def scores(held: HeldOut, *, seed: int = 0) -> dict[str, Score]:
    """Per method."""
    names, codes = np.unique(held.groups, return_inverse=True)
    picks = np.random.default_rng(seed).integers(len(names), size=(_RESAMPLES, len(names)))
    draws = np.stack([np.bincount(pick, minlength=len(names)) for pick in picks]).astype(np.float64)
    size = np.bincount(codes).astype(np.float64)
    found = {}
    for name, values in held.predicted.items():
        errors = np.abs(values / held.measured - 1.0)
        total = np.bincount(codes, weights=errors)
        resampled = 100.0 * (1.0 - (draws @ total) / (draws @ size))
        low, high = np.quantile(resampled, [(1.0 - COVERAGE) / 2.0, (1.0 + COVERAGE) / 2.0])
        found[name] = Score(value=float(100.0 * (1.0 - errors.mean())), low=float(low), high=float(high))
    return found


def intervals(held: HeldOut) -> dict[str, Interval]:
    """Per method that has one."""
    found = {}
    for name, (low, high) in held.interval.items():
        inside = (held.measured >= low) & (held.measured <= high)
        by_fold = [float(inside[held.fold == number].mean()) for number in np.unique(held.fold)]
        width = float(np.median(np.sqrt(high / np.maximum(low, 1e-12))) - 1.0)
        found[name] = Interval(coverage=float(inside.mean()), worst=min(by_fold), width=width)
    return found


def tables(found: Sequence[HeldOut]) -> list[Table]:
    """One table of cold scores and one after readings per data set and target; one of intervals where methods have any.

    A note that all rows of a table share stands under its title, another one in its row.
    """
    made = []
    for data, target in dict.fromkeys((held.data, held.target) for held in found):
        of = [held for held in found if (held.data, held.target) == (data, target)]
        for cold in (True, False):
            rows = [held for held in of if (held.calibration == "cold") is cold]
            if rows:
                made.append(_scores_table(data, target, rows, cold=cold))
    if any(held.interval for held in found):
        made.append(_intervals_table(found))
    return made


def _scores_table(data: str, target: str, rows: Sequence[HeldOut], *, cold: bool) -> Table:
    methods = tuple(dict.fromkeys(name for held in rows for name in held.predicted))
    shared = set.intersection(*(set(held.notes) for held in rows))
    own = ["; ".join(note for note in held.notes if note not in shared) for held in rows]
    cells = []
    for held, remark in zip(rows, own, strict=True):
        found = scores(held)
        label = held.split if cold else f"{held.split}, {held.calibration}"
        floor = None if held.floor is None else f"{held.floor:.1f}"
        known = [found[name].text() if name in found else None for name in methods]
        cells.append(
            (label, len(held.measured), len(np.unique(held.groups)), *known, floor, *([remark] if any(own) else []))
        )
    when = "nothing of the group measured" if cold else "after readings of each held-out deployment"
    return Table(
        key=f"{data}-{target}-{'cold' if cold else 'readings'}".lower().replace(" ", "-").replace("/", "-per-"),
        title=f"{data}: {target}, {when}",
        note="100 - MAPE in % (90 % interval over groups)" + "".join(f"; {note}" for note in sorted(shared)),
        columns=("held out", "rows", "groups", *methods, "floor", *(["notes"] if any(own) else [])),
        rows=tuple(cells),
    )


def _intervals_table(found: Iterable[HeldOut]) -> Table:
    rows = []
    for held in found:
        for name, interval in intervals(held).items():
            rows.append(
                (
                    f"{held.data}, {held.target}, {held.split}, {held.calibration}",
                    name,
                    f"{100 * interval.coverage:.0f} %",
                    f"{100 * interval.worst:.0f} %",
                    f"{100 * interval.width:.0f} %",
                )
            )
    return Table(
        key="intervals",
        title="90 % intervals",
        note="share of held-out rows inside, over all and in the worst fold; half-width is relative, median",
        columns=("held out", "method", "inside", "worst fold", "half-width"),
        rows=tuple(rows),
    )


def to_dict(found: Sequence[HeldOut]) -> list[dict[str, Any]]:
    """For JSON."""
    return [
        {
            "data": held.data,
            "target": held.target,
            "split": held.split,
            "calibration": held.calibration,
            "rows": len(held.measured),
            "groups": len(np.unique(held.groups)),
            "floor": held.floor,
            "scores": {name: _rounded(vars(score)) for name, score in scores(held).items()},
            "intervals": {name: _rounded(vars(interval)) for name, interval in intervals(held).items()},
            "notes": list(held.notes),
        }
        for held in found
    ]


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}
