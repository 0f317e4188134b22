"""Picture of the front: predicted watts against latency, with the SLO, what is in place and what is planned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.planner.front import Option, not_dominated

_DPI = 110
_BEYOND = 20.0
"""Latencies beyond this multiple of the target are drawn at the edge."""


def draw(options: Sequence[Option], slo: Slo, *, title: str, path: Path) -> None:
    """One panel per latency target."""
    goals = [
        (name, field, goal)
        for name, field, goal in (("TTFT", "ttft_seconds", slo.ttft), ("TPOT", "tpot_seconds", slo.tpot))
        if goal is not None
    ]
    figure, axes = plt.subplots(
        1, len(goals), figsize=(5.6 * len(goals), 4.6), constrained_layout=True, squeeze=False, sharey=True
    )
    for panel, (name, field, goal) in zip(axes[0], goals, strict=True):
        _panel(panel, options, field, goal)
        panel.set_xlabel(f"{name} p{goal.percentile:g}, upper bound with margin, ms")
    axes[0][0].set_ylabel("predicted W, all GPUs")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _panel(axes: Any, options: Sequence[Option], field: str, goal: LatencyTarget) -> None:
    shown = [option for option in options if getattr(option, field) <= _BEYOND * goal.seconds]
    milliseconds = np.array([1000.0 * getattr(option, field) for option in shown])
    watts = np.array([option.watts for option in shown])
    feasible = np.array([option.feasible for option in shown], dtype=bool)
    axes.axvspan(0, 1000.0 * goal.seconds, color="#1b7f5c", alpha=0.06)
    axes.axvline(1000.0 * goal.seconds, color="#1b7f5c", linewidth=1.2, label="SLO")
    axes.scatter(milliseconds[~feasible], watts[~feasible], s=14, color="#b9bec4", marker="x", label="not feasible")
    axes.scatter(milliseconds[feasible], watts[feasible], s=16, color="#5aa9e6", label="feasible")
    if shown:
        best = not_dominated(np.column_stack([milliseconds, watts]))
        order = np.argsort(milliseconds[best])
        axes.step(
            milliseconds[best][order], watts[best][order], where="post", color="black", linewidth=1, label="front"
        )
    marks = [("in_place", "in place", "s", "#d98b1f"), ("planned", "plan", "*", "#b03060")]
    for name, label, marker, colour in marks:
        for option in shown:
            if getattr(option, name):
                size = 190 if marker == "*" else 90
                at = 1000.0 * getattr(option, field), option.watts
                axes.scatter(*at, s=size, marker=marker, color=colour, edgecolor="white", zorder=5, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.LogLocator(subs=(2.0, 5.0)))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
