"""Pictures of an evaluation of the latency model: predicted against simulated, error against load, false verdicts."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from wattkeeper.evaluation import score, sla, tables
from wattkeeper.evaluation.score import ArrivalClass
from wattkeeper.evaluation.sla import Evaluation

COLOURS = {ArrivalClass.POISSON: "#2c5f9e", ArrivalClass.BURSTY: "#d98b1f", ArrivalClass.RECORDED: "#b03060"}
_LINES = ("#1b7f5c", "#2c5f9e", "#d98b1f", "#7d3c98")
_DPI = 90
_FLOOR = 0.3
"""Percent; smaller errors are drawn here."""
_MARGINS = np.linspace(0.0, 1.0, 21)


def draw(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the pictures into a folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    panels: list[tuple[str, Callable[[Any, Evaluation], None]]] = [
        ("predicted", _predicted),
        ("error-by-load", _error_by_load),
        ("false-verdicts", _false_verdicts),
    ]
    paths = []
    for name, panel in panels:
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), constrained_layout=True)
        panel(axes, evaluation)
        for each in axes:
            each.grid(alpha=0.25)
            for side in ("top", "right"):
                each.spines[side].set_visible(False)
        paths.append(folder / f"sla-{name}.png")
        figure.savefig(paths[-1], dpi=_DPI)
        plt.close(figure)
    return paths


def _predicted(axes: Any, evaluation: Evaluation) -> None:
    planned = tables.planned(evaluation)
    found = evaluation.latencies(sla.PATH, sla.MODEL, tables.P95)
    real = evaluation.truth(sla.PATH, tables.P95)
    for panel, (metric, value) in zip(axes, tables.METRICS, strict=True):
        x, y = 1e3 * value(real), 1e3 * value(found)
        shown = np.isfinite(x) & np.isfinite(y)
        for arrivals, colour in COLOURS.items():
            of_class = tables.of_class(evaluation, arrivals) & shown
            for part, filled in ((of_class & planned, True), (of_class & ~planned, False)):
                panel.scatter(
                    x[part], y[part], s=13, linewidths=0.7, edgecolors=colour, alpha=0.75,
                    facecolors=colour if filled else "none", label=str(arrivals) if filled else None,
                )  # fmt: skip
        ends = [float(np.nanmin(x[shown])) * 0.8, float(np.nanmax(x[shown])) * 1.25]
        panel.plot(ends, ends, color="black", linewidth=0.8)
        panel.plot(ends, [1.3 * end for end in ends], ":", color="black", linewidth=0.8)
        panel.plot(ends, [end / 1.3 for end in ends], ":", color="black", linewidth=0.8)
        panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        panel.set_xlabel(f"p95 {metric} simulated, ms")
        panel.set_ylabel(f"p95 {metric} predicted, ms")
    axes[0].legend(loc="upper left", frameon=False, fontsize=9)
    axes[1].text(
        0.98, 0.03, f"hollow: load above {score.PLANNED_LOAD}\ndotted: 30 % off",
        transform=axes[1].transAxes, ha="right", fontsize=9,
    )  # fmt: skip


def _error_by_load(axes: Any, evaluation: Evaluation) -> None:
    loads = score.loads(evaluation.runs)
    found = evaluation.latencies(sla.PATH, sla.MODEL, tables.P95)
    real = evaluation.truth(sla.PATH, tables.P95)
    edges = np.linspace(0.1, 1.0, 10)
    for panel, (metric, value) in zip(axes, tables.METRICS, strict=True):
        error = 100.0 * np.minimum(np.abs(value(found) / value(real) - 1.0), 10.0)
        for arrivals, colour in COLOURS.items():
            of_class = tables.of_class(evaluation, arrivals) & np.isfinite(error)
            panel.scatter(loads[of_class], np.maximum(error[of_class], _FLOOR), s=9, color=colour, alpha=0.45)
            parts = [
                (0.5 * (low + high), float(np.median(error[of_class & (loads >= low) & (loads < high)])))
                for low, high in itertools.pairwise(edges)
                if (of_class & (loads >= low) & (loads < high)).any()
            ]
            if parts:
                panel.plot(*zip(*parts, strict=True), color=colour, linewidth=2, label=str(arrivals))
        panel.axvline(score.PLANNED_LOAD, color="black", linewidth=0.8, linestyle=":")
        panel.set(yscale="log", ylim=(_FLOOR, 1100.0))
        panel.set_xlabel("load (rate over simulated saturation)")
        panel.set_ylabel(f"error of p95 {metric}, %")
    axes[0].legend(loc="upper left", frameon=False, fontsize=9, title="lines: medians")


def _false_verdicts(axes: Any, evaluation: Evaluation) -> None:
    part = tables.planned(evaluation)
    real = evaluation.truth(sla.PATH, tables.P95).where(part)
    wanted = dict.fromkeys((sla.MODEL, sla.DECIDES, sla.DECIDES_FRESH, sla.DECIDES_STAGE))
    asked = [method for method in wanted if method in evaluation.methods] + ["WVA x fitted factor"]
    for method, colour in zip(asked, (*_LINES, "#8a8f98"), strict=False):
        found = evaluation.latencies(sla.PATH, method, tables.P95).where(part)
        made = [score.verdicts(found, real, margin=float(margin)) for margin in _MARGINS]
        axes[0].plot(100 * _MARGINS, [each.false_met.percent for each in made], color=colour, label=method)
        axes[1].plot(100 * _MARGINS, [each.false_missed.percent for each in made], color=colour, label=method)
    axes[0].set_ylabel("accepted that violate the SLO, %")
    axes[0].set_yscale("symlog", linthresh=0.1)
    axes[1].set_ylabel("feasible that are rejected, %")
    for panel in axes:
        panel.set_xlabel("margin on predictions, %")
        panel.set_ylim(bottom=0.0)
    axes[0].legend(loc="best", frameon=False, fontsize=9)
