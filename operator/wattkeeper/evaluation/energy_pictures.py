"""Pictures of held-out energy predictions: predicted over measured, curves under limits and clocks, J/token by rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from wattkeeper.energy import caps_evaluate, clocks_evaluate, learned, ml_energy_evaluate, nlr_evaluate
from wattkeeper.energy.held_out import HeldOut

_DPI = 72
_COLOURS = ("#1b7f5c", "#2c5f9e", "#d98b1f", "#b03060", "#7d3c98", "#8a8f98")
_GOOD = 0.25
"""Error that the band of the scatter shows."""
_CARD_SPLITS = {"unseen GPU": "rated watts known only", f"unseen GPU{caps_evaluate.FULL_POWER}": "read at full power"}
_DESIGNED = "+2 designed"


def draw(found: Sequence[HeldOut], folder: Path) -> list[Path]:
    """Write the pictures that the predictions allow into a folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    joules = [held for held in found if held.target == learned.TARGETS[0] and held.calibration == "cold"]
    runs = [held for held in joules if ml_energy_evaluate.PRIOR in held.predicted]
    limits = [held for held in found if held.target == caps_evaluate.TARGET and held.split in _CARD_SPLITS]
    rates = [held for held in joules if held.series is not None and nlr_evaluate.TREES in held.predicted]
    clocks = [held for held in found if held.data == clocks_evaluate.DATA]
    paths = []
    for name, helds, panel in (
        ("predicted", runs, _scatter),
        ("limits", limits, _limits),
        ("rates", rates, _rates),
        ("clocks", clocks, _clocks),
    ):
        if helds:
            figure = panel(helds)
            paths.append(folder / f"energy-{name}.png")
            figure.savefig(paths[-1], dpi=_DPI)
            plt.close(figure)
    return paths


def _scatter(helds: Sequence[HeldOut]) -> Any:
    figure, grid = plt.subplots(
        1, len(helds), figsize=(3.4 * len(helds), 4.2), constrained_layout=True, sharey=True, squeeze=False
    )
    low = min(float(held.measured.min()) for held in helds) * 0.7
    high = max(float(held.measured.max()) for held in helds) * 1.4
    ends = np.array([low, high])
    for axes, held in zip(grid[0], helds, strict=True):
        shown = held.predicted[ml_energy_evaluate.MODEL]
        axes.fill_between(ends, ends * (1 - _GOOD), ends * (1 + _GOOD), color="black", alpha=0.18, lw=0)
        axes.plot(held.measured, shown, ".", color=_COLOURS[0], ms=4, alpha=0.5)
        axes.plot(ends, ends, color="black", lw=0.8)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, J/token")
        axes.set_box_aspect(1.0)
        axes.set_title(held.split, fontsize=10)
        _figures(axes.xaxis, axes.yaxis)
        _plain(axes)
    grid[0][0].set_ylabel("predicted, J/token")
    _title(figure, f"{helds[0].data}, nothing of the group measured; grey: within {100 * _GOOD:.0f} %")
    return figure


def _limits(helds: Sequence[HeldOut]) -> Any:
    """A row per split, a column per card; points measured, dotted foreseen cold, lines after two readings."""
    cards = sorted(set(np.concatenate([held.groups for held in helds])))
    splits = [split for split in _CARD_SPLITS if any(held.split == split for held in helds)]
    figure, grid = plt.subplots(
        len(splits), len(cards), figsize=(3.4 * len(cards), 3.3 * len(splits)), constrained_layout=True, sharex="col",
        sharey=True, squeeze=False,
    )  # fmt: skip
    for row, split in zip(grid, splits, strict=True):
        for axes, card in zip(row, cards, strict=True):
            for held in (held for held in helds if held.split == split and held.calibration in ("cold", _DESIGNED)):
                _card(axes, held, card)
            axes.set_title(f"{card}, {_CARD_SPLITS[split]}", fontsize=9)
            _plain(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel("throughput over uncapped")
    for axes in grid[-1]:
        axes.set_xlabel(helds[0].x_name)
    _title(
        figure,
        "each card held out with all its curves; points measured, dotted cold, lines after two readings; "
        "names end in the requests at once",
    )
    return figure


def _card(axes: Any, held: HeldOut, card: str) -> None:
    cold = held.calibration == "cold"
    for colour, name, index in _series(held, held.groups == card):
        x = _x(held)[index]
        if cold:
            axes.plot(x, held.measured[index], "o", color=colour, ms=3.5, fillstyle="none")
        style = (
            {"ls": ":", "lw": 1.4} if cold else {"ls": "-", "lw": 1.2, "label": _told(name.removeprefix(f"{card}|"))}
        )
        axes.plot(x, held.predicted[caps_evaluate.MODEL][index], color=colour, **style)
    if not cold:
        axes.legend(frameon=False, fontsize=7, loc="lower right")


def _rates(helds: Sequence[HeldOut]) -> Any:
    lines = (len(helds) + 1) // 2
    figure, grid = plt.subplots(
        lines, 2, figsize=(11, 3.8 * lines), constrained_layout=True, sharex=True, sharey=True, squeeze=False
    )
    for axes in grid.flat[len(helds) :]:
        axes.set_visible(False)
    for axes, held in zip(grid.flat, helds, strict=False):
        for colour, name, index in _series(held, np.ones(len(held.measured), dtype=np.bool_)):
            x, shown = _x(held)[index], held.predicted[nlr_evaluate.MODEL][index]
            axes.plot(x, held.measured[index], "o", color=colour, ms=3, alpha=0.5, fillstyle="none")
            rates = np.unique(x)
            axes.plot(rates, [shown[x == rate].mean() for rate in rates], color=colour, lw=1.3, label=_told(name))
        axes.set(xscale="log", yscale="log", xlabel=held.x_name, ylabel="J/token of the node")
        axes.set_title(held.split, fontsize=10)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        _figures(axes.xaxis, axes.yaxis)
        _plain(axes)
        axes.label_outer()
    grid[0][0].legend(frameon=False, fontsize=8)
    _title(figure, "points measured, lines foreseen without the group; workloads are prompts and cap of the answers")
    return figure


def _clocks(helds: Sequence[HeldOut]) -> Any:
    targets = list(dict.fromkeys(held.target for held in helds))
    figure, grid = plt.subplots(1, len(targets), figsize=(5.2 * len(targets), 4.2), constrained_layout=True)
    for axes, target in zip(np.atleast_1d(grid), targets, strict=True):
        for colour, held in zip(_COLOURS, (held for held in helds if held.target == target), strict=False):
            label = str(held.series[0]) if held.series is not None else held.split
            axes.plot(_x(held), held.measured, "o-", color=colour, ms=4, lw=0.8, fillstyle="none", label=label)
            axes.plot(_x(held), held.predicted[clocks_evaluate.PHYSICS], ":", color=colour, lw=1.6)
        axes.set(xlabel=helds[0].x_name, ylabel=f"{target},\nover that at the highest SM clock")
        axes.set_ylim(bottom=0)
        _plain(axes)
    np.atleast_1d(grid)[0].legend(frameon=False, fontsize=8)
    _title(
        figure,
        "one RTX 5090, decode; circles measured, dotted by the physics (throughput: the same at 810 MHz and above)",
    )
    return figure


def _series(held: HeldOut, part: Any) -> list[tuple[str, str, Any]]:
    """Colour, name and rows by `x` of each series that has rows in `part`."""
    names = held.split if held.series is None else held.series
    found: list[tuple[str, str, Any]] = []
    for name in np.unique(np.asarray(names)[part]):
        index = np.flatnonzero(part & (names == name))
        found.append((_COLOURS[len(found) % len(_COLOURS)], str(name), index[np.argsort(_x(held)[index])]))
    return found


def _told(series: str) -> str:
    """For people."""
    return series.replace("|", ", ")


def _x(held: HeldOut) -> Any:
    if held.x is None:
        raise ValueError(f"{held.data}, {held.split}: no x to draw over")
    return held.x


def _figures(*axes: Any) -> None:
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _title(figure: Any, text: str) -> None:
    figure.suptitle(text, fontsize=10)
