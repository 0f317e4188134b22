"""Errors of predictions against measured tables, as one form for the terminal, JSON and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from wattkeeper.domain.workload import FloatArray

ROW_COLUMNS = ("split", "method", "target", "group", "x", "measured", "predicted")
"""Of a table of predictions: what was held out, who predicted what (seconds; NaN = no answer), the group that is drawn
together in the bootstrap, and the rate or batch. Further columns name parts to report apart."""
ALL = "all"

_RESAMPLES = 400


@dataclass(frozen=True, kw_only=True)
class Score:
    """Relative errors |predicted / measured - 1| of one method on one target; shares are 0..1."""

    split: str
    method: str
    target: str
    part: str
    """Part of the rows ("gpu: nvidia-b200"); `ALL` = every one."""
    rows: int
    answered: float
    """Share of rows for which the method gives a finite figure; the errors are over those."""
    median: float
    median_low: float
    median_high: float
    """Ends of the 90 % interval of the median, from a bootstrap over groups."""
    p90: float
    within: float
    """Share of all rows with an error within the goal; no answer counts as a miss."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that is known of one measured table."""

    name: str
    title: str
    goal: float
    """Relative error to stay within."""
    targets: tuple[str, ...]
    rows: pd.DataFrame
    """`ROW_COLUMNS`."""
    scores: tuple[Score, ...]
    notes: tuple[str, ...]
    parameters: dict[str, Any]
    """Calibrated figures, for the reader."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the digits that mean something."""
        return {
            "name": self.name,
            "title": self.title,
            "goal": self.goal,
            "scores": [_rounded(asdict(score)) for score in self.scores],
            "parameters": self.parameters,
            "notes": list(self.notes),
        }

    def tables(self) -> list[Table]:
        """A table per split with methods down, and one of the parts; targets across."""
        splits = dict.fromkeys(score.split for score in self.scores)
        whole = [score for score in self.scores if score.part == ALL]
        found = [
            self._table(f"{self.title}: {split}", "method", [score for score in whole if score.split == split])
            for split in splits
        ]
        parts = [score for score in self.scores if score.part != ALL]
        if parts:
            head = f"{self.title}: {parts[0].split}; {parts[0].method}"
            found.append(self._table(head, "part", parts))
        return found

    def _table(self, title: str, down: str, chosen: list[Score]) -> Table:
        caption = f"median / 90th percentile of the error in %, share of rows within {self.goal:.0%}"
        table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
        table.add_column(down)
        for target in self.targets:
            table.add_column(target, justify="right", no_wrap=True)
        table.add_column("rows", justify="right")
        for name in dict.fromkeys(getattr(score, down) for score in chosen):
            found = {score.target: score for score in chosen if getattr(score, down) == name}
            cells = [_cell(found.get(target)) for target in self.targets]
            answered = min(score.answered for score in found.values())
            unknown = "" if answered == 1.0 else f"\n{1.0 - answered:.0%} no answer"
            table.add_row(f"{name}{unknown}", *cells, str(max(score.rows for score in found.values())))
        return table


def rows_of(
    *,
    split: str,
    method: str,
    target: str,
    group: Sequence[str],
    x: FloatArray,
    measured: FloatArray,
    predicted: FloatArray,
    parts: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """Predictions of one method in the form of `ROW_COLUMNS`, and the columns of `parts`."""
    return pd.DataFrame(
        {
            "split": split,
            "method": method,
            "target": target,
            "group": list(group),
            "x": x,
            "measured": measured,
            "predicted": predicted,
            **{name: list(values) for name, values in parts.items()},
        }
    )


def scores(
    rows: pd.DataFrame, *, goal: float, seed: int, parts: Sequence[str], split: str, method: str
) -> tuple[Score, ...]:
    """Scores of all splits, methods and targets in order of appearance, then the parts of one split and method."""
    found = []
    for (held, who, target), frame in rows.groupby(["split", "method", "target"], sort=False):
        found.append(_score(frame, str(held), str(who), str(target), ALL, goal=goal, seed=seed))
    chosen = rows[(rows["split"] == split) & (rows["method"] == method)]
    for part in parts:
        for (name, target), frame in chosen.groupby([part, "target"], sort=True):
            found.append(_score(frame, split, method, str(target), f"{part}: {name}", goal=goal, seed=seed))
    return tuple(found)


def errors(rows: pd.DataFrame) -> FloatArray:
    """|predicted / measured - 1|; NaN where there is no answer."""
    predicted = rows["predicted"].to_numpy(dtype=np.float64)
    error = np.abs(predicted / rows["measured"].to_numpy(dtype=np.float64) - 1.0)
    return np.asarray(np.where(np.isfinite(predicted), error, np.nan))


def _score(frame: pd.DataFrame, split: str, method: str, target: str, part: str, *, goal: float, seed: int) -> Score:
    error = errors(frame)
    known = np.isfinite(error)
    low, high = _interval(error[known], frame["group"].to_numpy()[known], seed=seed)
    return Score(
        split=split,
        method=method,
        target=target,
        part=part,
        rows=len(frame),
        answered=float(known.mean()),
        median=float(np.median(error[known])) if known.any() else np.nan,
        median_low=low,
        median_high=high,
        p90=float(np.percentile(error[known], 90.0)) if known.any() else np.nan,
        within=float((error[known] <= goal).sum() / len(frame)),
    )


def _interval(error: FloatArray, groups: np.ndarray[Any, Any], *, seed: int) -> tuple[float, float]:
    """90 % interval of the median when whole groups are drawn with replacement."""
    codes, names = pd.factorize(groups)
    if len(names) < 2:
        return np.nan, np.nan
    members = [error[codes == code] for code in range(len(names))]
    rng = np.random.default_rng(seed)
    medians = [
        float(np.median(np.concatenate([members[code] for code in rng.integers(0, len(names), len(names))])))
        for _ in range(_RESAMPLES)
    ]
    return float(np.percentile(medians, 5.0)), float(np.percentile(medians, 95.0))


def _cell(score: Score | None) -> str:
    if score is None or not np.isfinite(score.median):
        return "-"
    return f"{100 * score.median:.1f} / {100 * score.p90:.0f}\n({score.within:.0%})"


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers with four digits; null where there is none."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, float):
            result[key] = round(value, 4) if np.isfinite(value) else None
        else:
            result[key] = value
    return result
