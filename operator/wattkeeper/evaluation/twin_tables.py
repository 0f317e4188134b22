"""How far the twin is from measured runs, as tables, JSON and one picture."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from wattkeeper.evaluation import twin_measured
from wattkeeper.evaluation.measured_result import ALL, Score
from wattkeeper.evaluation.nlr_data import TARGETS as NLR_TARGETS
from wattkeeper.evaluation.rendering import Table
from wattkeeper.evaluation.twin_measured import (
    CLOSED_TARGETS,
    EQUAL,
    GOAL,
    IN,
    ITL,
    JOULES,
    LISTED,
    NAMED,
    NLR,
    SIBLING,
    THROUGHPUT,
    VARIED,
    WATTS,
    Outcome,
)

_SPLITS = (IN, SIBLING, LISTED, NAMED, NLR)
_COLOURS = {IN: "#8a8f98", SIBLING: "#2e6da4", LISTED: "#1b7f5c", NAMED: "#d68910", NLR: "#7d3c98"}
_BANDS = ((0.0, 16.0), (16.0, 64.0), (64.0, 256.0), (256.0, 1e9))
_PANELS = (
    (ITL, "median inter-token latency, ms", 1e3),
    (THROUGHPUT, "output tokens per second", 1.0),
    (WATTS, "watts per GPU", 1.0),
    (JOULES, "joules per output token", 1.0),
    ("ttft_p50", "NLR: median TTFT, ms", 1e3),
    ("tpot_p50", "NLR: median TPOT, ms", 1e3),
)


def tables(outcome: Outcome) -> list[Table]:
    """Errors by split, signed errors by curve and by batch, and over NLR's rates."""
    rows = outcome.rows[outcome.rows["method"] == VARIED]
    closed = rows[rows["split"] != NLR]
    return [
        _errors(outcome, CLOSED_TARGETS, "twin-errors", "ML.ENERGY: errors, in sample and out of sample"),
        _curves(closed),
        _batches(closed),
        _errors(outcome, NLR_TARGETS, "twin-nlr", "NLR: errors"),
        _rates(rows[rows["split"] == NLR]),
    ]


def summary(outcome: Outcome) -> str:
    """A few sentences with the figures that count."""
    rows = outcome.rows[outcome.rows["method"] == VARIED]
    held = rows[rows["split"].isin((SIBLING, LISTED, NAMED))]
    low, high = outcome.node_power_share
    return (
        f"Median errors on {_count(held)} ML.ENERGY runs that nothing was fitted to: {_told(held)}. On the "
        f"{_count(rows[rows['split'] == IN])} runs that the twin's tables were fitted to: "
        f"{_told(rows[rows['split'] == IN])}. On NLR the twin's GPUs draw {low:.0%} to {high:.0%} of the measured "
        "power of the node, which has CPUs and more in it."
    )


def _count(rows: pd.DataFrame) -> int:
    return int((rows["target"] == WATTS).sum())


def _told(rows: pd.DataFrame) -> str:
    size = {target: rows.loc[rows["target"] == target, "bias"].abs() for target in CLOSED_TARGETS}
    return ", ".join(
        f"{target} {each.median():.0%} ({(each <= GOAL).mean():.0%} of runs within {GOAL:.0%})"
        for target, each in size.items()
    )


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """For JSON: scores with intervals, and every row."""
    return {
        "goal": GOAL,
        "scores": [
            {key: None if value != value else value for key, value in asdict(score).items()}
            for score in outcome.scores
            if score.part == ALL
        ],
        "node_power_share": list(outcome.node_power_share),
        "rows": outcome.rows.to_dict(orient="records"),
    }


def _errors(outcome: Outcome, targets: Sequence[str], key: str, title: str) -> Table:
    found = {(score.split, score.method, score.target): score for score in outcome.scores if score.part == ALL}
    rows: list[tuple[str | int, ...]] = []
    for split in _SPLITS:
        first = found.get((split, VARIED, targets[0]))
        if first is not None:
            rows.append((split, *(_score(found[split, VARIED, target]) for target in targets), first.rows))
        equal = found.get((split, EQUAL, targets[0]))
        if equal is not None:
            rows.append((f"- {EQUAL}", *(_score(found[split, EQUAL, target]) for target in targets), equal.rows))
    return Table(
        key=key,
        title=title,
        note="Relative errors in %: median [90 % interval: whole curves or rates drawn] / 90th percentile (share of "
        f"rows within {GOAL:.0%}). No interval where one curve is all there is.",
        columns=("runs", *targets, "rows"),
        rows=tuple(rows),
    )


def _score(score: Score) -> str:
    known = np.isfinite(score.median_low)
    interval = f" [{100 * score.median_low:.1f} to {100 * score.median_high:.1f}]" if known else ""
    return f"{100 * score.median:.1f}{interval} / {100 * score.p90:.0f} ({score.within:.0%})"


def _signed(rows: pd.DataFrame, targets: Sequence[str]) -> list[str]:
    found = twin_measured.biases(rows, targets)
    return [f"{100 * middle:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})" for middle, low, high in found]


_SIGNED = "Signed errors in %: median (least to largest); + means that the twin says more than was measured."


def _curves(closed: pd.DataFrame) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for split in _SPLITS:
        for name, part in closed[closed["split"] == split].groupby("model", sort=True):
            model, gpus, task = str(name).split("|")
            count = int((part["target"] == ITL).sum())
            rows.append((f"{model}, {gpus} GPU, {task}", _SHORT[split], *_signed(part, CLOSED_TARGETS), count))
    return Table(
        key="twin-curves",
        title="ML.ENERGY: signed errors by model and task",
        note=_SIGNED,
        columns=("curve", "runs", *CLOSED_TARGETS, "rows"),
        rows=tuple(rows),
    )


_SHORT = {IN: "in sample", SIBLING: "same architecture", LISTED: "other model", NAMED: "by name"}


def _batches(closed: pd.DataFrame) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for what, part in (("in sample", closed["split"] == IN), ("out of sample", closed["split"] != IN)):
        for task in sorted(closed.loc[part, "model"].str.rpartition("|")[2].unique()):
            chosen = closed[part & closed["model"].str.endswith(f"|{task}")]
            for low, high in _BANDS:
                band = chosen[(chosen["x"] > low) & (chosen["x"] <= high)]
                if len(band):
                    words = f"{low:.0f} to {high:.0f}" if high < 1e6 else f"above {low:.0f}"
                    count = int((band["target"] == ITL).sum())
                    rows.append((f"{what}, {task}, batch {words}", *_signed(band, CLOSED_TARGETS), count))
    return Table(
        key="twin-batches",
        title="ML.ENERGY: signed errors by batch",
        note=_SIGNED + " Answers have some 400 to 700 tokens in lm-arena-chat, 7,000 to 8,000 in gpqa.",
        columns=("runs", *CLOSED_TARGETS, "rows"),
        rows=tuple(rows),
    )


def _rates(rows: pd.DataFrame) -> Table:
    made: list[tuple[str | int, ...]] = []
    for rate, part in rows.groupby("x"):
        count = int((part["target"] == NLR_TARGETS[0]).sum())
        made.append((f"{rate:g}", *_signed(part, NLR_TARGETS), count))
    return Table(
        key="twin-rates",
        title="NLR: signed errors by rate",
        note=_SIGNED + " 1,000 requests are sent at each rate and workload.",
        columns=("requests/s", *NLR_TARGETS, "rows"),
        rows=tuple(made),
    )


def picture(outcome: Outcome, folder: Path) -> Path:
    """The twin over what was measured, one panel per figure; returns the path of the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = outcome.rows[outcome.rows["method"] == VARIED]
    figure, grid = plt.subplots(2, 3, figsize=(13, 8.2), constrained_layout=True)
    for axes, (target, label, scale) in zip(grid.flat, _PANELS, strict=True):
        _panel(axes, rows[rows["target"] == target], label, scale)
    handles = [Line2D([], [], marker="o", ls="", color=_COLOURS[split], label=split) for split in _SPLITS]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    path = folder / "twin.png"
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


def _panel(axes: Any, rows: pd.DataFrame, label: str, scale: float) -> None:
    for split in _splits_of(rows):
        part = rows[rows["split"] == split]
        axes.plot(scale * part["measured"], scale * part["predicted"], "o", ms=4, alpha=0.75, color=_COLOURS[split])
    low = scale * float(rows[["measured", "predicted"]].min().min())
    high = scale * float(rows[["measured", "predicted"]].max().max())
    ends = np.array([0.93 * low, 1.07 * high])
    axes.plot(ends, ends, color="black", lw=0.8)
    axes.fill_between(ends, ends * (1.0 - GOAL), ends * (1.0 + GOAL), color="black", alpha=0.08, lw=0)
    if high > 5.0 * low:
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    axes.set(xlim=ends, ylim=ends)
    axes.set_xlabel(f"measured: {label}")
    axes.set_ylabel("twin")
    axes.grid(alpha=0.25)


def _splits_of(rows: pd.DataFrame) -> Iterable[str]:
    return [split for split in _SPLITS if (rows["split"] == split).any()]
