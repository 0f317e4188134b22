"""Pictures of a replay: energy against attainment, a course over time, and latencies of all policies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from wattkeeper.replay import table
from wattkeeper.replay.result import QUANTILES, Report, Run

_COLOURS = {
    "static-peak": "#6b6b6b",
    "static-p95": "#a8a8a8",
    "static-cap": "#8c6d31",
    "static-clock": "#bd9e39",
    "hpa-waiting": "#d55e00",
    "hpa-kv": "#e69f00",
    "keda-in-flight": "#cc79a7",
    "mean-queue": "#0072b2",
    "wattkeeper": "#009e73",
    "wattkeeper-power": "#56b4e9",
    "wattkeeper-replicas": "#7a5195",
}
"""Told apart by colour-blind readers; one colour per policy in all pictures."""
_MARKERS = "osD^v<>P*Xh"
_COURSES = ("static-peak", "keda-in-flight", "mean-queue", "wattkeeper")
"""Policies whose course is drawn, where they were played."""


def draw(report: Report, folder: Path) -> list[Path]:
    """Write `plane.png`, `course.png` and `latencies.png` into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, picture in (("plane", _plane), ("course", _course), ("latencies", _latencies)):
        figure = picture(report)
        found.append(folder / f"{name}.png")
        figure.savefig(found[-1], dpi=110)
        plt.close(figure)
    return found


def _colour(policy: str) -> str:
    return _COLOURS.get(policy, "#333333")


def _dress(axes: Any, *, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _plane(report: Report) -> Any:
    figure, axes = plt.subplots(figsize=(9, 5.5), constrained_layout=True)
    for index, row in enumerate(table.rows(report)):
        misses = max(1.0 - row.attainment.value, 1e-5)
        axes.scatter(
            row.kwh,
            100.0 * misses,
            color=_colour(row.policy),
            marker=_MARKERS[index % len(_MARKERS)],
            s=80,
            label=row.policy,
            zorder=3,
        )
        for run in report.of(row.policy):
            axes.scatter(
                run.energy.total / 3.6e6,
                100.0 * max(1.0 - run.requests.attainment, 1e-5),
                color=_colour(row.policy),
                s=10,
                alpha=0.5,
            )
    axes.axhline(100.0 * (1.0 - report.goal), color="#c0392b", linewidth=1, linestyle="--")
    axes.text(
        0.99, 100.0 * (1.0 - report.goal), f"goal: {100.0 * report.goal:g} % in SLO ", color="#c0392b", va="bottom",
        ha="right", transform=axes.get_yaxis_transform(),
    )  # fmt: skip
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.set_title("Energy and attainment: up and to the left is better", loc="left")
    _dress(axes, x="energy of held GPUs, kWh", y="requests outside the SLO, % (log)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _course(report: Report) -> Any:
    runs = [report.of(policy)[0] for policy in _COURSES if report.of(policy)] or [report.runs[0]]
    panels: list[tuple[str, Callable[[Run], Sequence[float | None]]]] = [
        ("requests/s", lambda run: run.course.requests_per_second),
        ("ready replicas", lambda run: run.course.ready),
        ("clock, MHz", lambda run: run.course.clock_mhz),
        ("power, kW", lambda run: [watts / 1000.0 for watts in run.course.power_watts]),
        ("TTFT p95, s", lambda run: run.course.ttft_p95_seconds),
        ("TPOT p95, ms", lambda run: [None if v is None else 1000.0 * v for v in run.course.tpot_p95_seconds]),
    ]
    figure, all_axes = plt.subplots(len(panels), 1, figsize=(10, 13), sharex=True, constrained_layout=True)
    for axes, (label, values) in zip(all_axes, panels, strict=True):
        shown: Sequence[Run] = runs[:1] if label == "requests/s" else runs
        for run in shown:
            hours = (np.arange(len(run.course.ready)) + 1) * run.course.interval_seconds / 3600.0
            known = [np.nan if value is None else value for value in values(run)]
            colour = "#333333" if label == "requests/s" else _colour(run.policy)
            axes.step(hours, known, where="pre", linewidth=1.2, color=colour, label=run.policy)
        _dress(axes, x="hours since the beginning", y=label)
        axes.set_ylim(bottom=0)
        axes.label_outer()
    for axes, target, unit in (
        (all_axes[4], report.ttft_target_seconds, 1.0),
        (all_axes[5], report.tpot_target_seconds, 1000.0),
    ):
        if target is not None:
            axes.axhline(target * unit, color="#c0392b", linestyle="--", linewidth=1)
            axes.set_ylim(
                0, max(axes.get_ylim()[1] if axes.get_ylim()[1] < 4 * target * unit else 0, 2 * target * unit)
            )
    all_axes[1].legend(ncols=len(runs), fontsize=9, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    all_axes[0].set_title(f"{report.title}: course (SLO dashed)", loc="left")
    return figure


def _latencies(report: Report) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, constrained_layout=True)
    shares = 100.0 * (1.0 - np.array(QUANTILES))
    for policy in report.policies():
        run = report.of(policy)[0]
        style = {"color": _colour(policy), "label": policy, "linewidth": 2.0 if policy == "wattkeeper" else 1.2}
        left.plot(run.ttft_seconds, shares, **style)
        right.plot([1000.0 * each for each in run.tpot_seconds], shares, **style)
    for axes, target, unit, label in (
        (left, report.ttft_target_seconds, 1.0, "TTFT, s (log)"),
        (right, report.tpot_target_seconds, 1000.0, "TPOT, ms (log)"),
    ):
        axes.set_xscale("log")
        axes.set_yscale("log")
        if target is not None:
            axes.axvline(target * unit, color="#c0392b", linestyle="--", linewidth=1)
        _dress(axes, x=label, y="requests slower than that, % (log)" if axes is left else "")
    left.set_title("Latencies of finished requests (SLO dashed)", loc="left")
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure
