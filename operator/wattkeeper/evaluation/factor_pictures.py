"""Pictures of the factor analysis: bars by cause and dimension, heat map of interactions."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patches

from wattkeeper.energy.contributions import DIMENSIONS
from wattkeeper.evaluation.factor_analysis import FactorAnalysis, Moved, TargetAnalysis

_COLOURS = dict(zip((each.value for each in DIMENSIONS), ("#7d3c98", "#2c5f9e", "#d98b1f", "#1b7f5c"), strict=True))
_DPI = 100
_MOST = 9
_LEAST_LOG = 5e-4


def draw(found: FactorAnalysis, folder: Path) -> list[Path]:
    """Write `factors-bars.png` and `factors-interactions.png` into a folder, made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    bars, axes = plt.subplots(1, 3, figsize=(15, 4.4), constrained_layout=True)
    for panel, target in zip(axes, found.targets, strict=False):
        _bars(panel, target.causes, f"{target.target}: prediction, by cause")
    _bars(axes[2], found.learned, "W per GPU: learned part, by factor")
    handles = [patches.Patch(color=colour) for colour in _COLOURS.values()]
    bars.legend(handles, list(_COLOURS), loc="outside lower center", ncols=len(_COLOURS), frameon=False)
    heat, panels = plt.subplots(1, len(found.targets), figsize=(10.5, 4.4), constrained_layout=True)
    for panel, target in zip(panels, found.targets, strict=True):
        _heat(panel, target)
    paths = [folder / "factors-bars.png", folder / "factors-interactions.png"]
    for figure, path in zip((bars, heat), paths, strict=True):
        figure.savefig(path, dpi=_DPI)
        plt.close(figure)
    return paths


def _percent(log: Any) -> Any:
    return 100.0 * np.expm1(log)


def _bars(axes: Any, moved: tuple[Moved, ...], title: str) -> None:
    shown = [each for each in moved if each.size.mean >= _LEAST_LOG][:_MOST][::-1]
    at = np.arange(len(shown))
    mean = _percent(np.array([each.size.mean for each in shown]))
    ends = _percent(np.array([[each.size.low, each.size.high] for each in shown])).T
    axes.barh(at, mean, color=[_COLOURS[each.dimension] for each in shown])
    spread = np.maximum(np.stack([mean - ends[0], ends[1] - mean]), 0.0)
    axes.errorbar(mean, at, xerr=spread, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
    for height, value, end in zip(at, mean, ends[1], strict=True):
        axes.annotate(
            f"{value:.3g} %",
            (max(value, end), height),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.margins(x=0.16)
    axes.set_yticks(at, [each.name for each in shown], fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("mean size, % of the value (90 % interval)")
    axes.grid(alpha=0.25, axis="x")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _heat(axes: Any, target: TargetAnalysis) -> None:
    names = [each.value for each in DIMENSIONS]
    values = _percent(target.interactions)
    shown = np.where(np.tri(len(names), k=-1, dtype=bool), values, np.nan)
    axes.imshow(shown, cmap="Blues", vmin=0.0, vmax=1.15 * max(float(np.nanmax(shown)), 1e-9))
    middle = 0.6 * float(np.nanmax(shown))
    for row in range(len(names)):
        for column in range(row):
            value = values[row, column]
            colour = "white" if value > middle else "black"
            axes.text(column, row, f"{value:.1f} %", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(names) - 1), names[:-1], fontsize=9)
    axes.set_yticks(range(1, len(names)), names[1:], fontsize=9)
    axes.set_xlim(-0.5, len(names) - 1.5)
    axes.set_ylim(len(names) - 0.5, 0.5)
    axes.set_title(f"{target.target}: mean size of interactions", fontsize=10)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
