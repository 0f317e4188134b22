"""Pictures of "When does WAIT pay?": latency and energy by load, one panel per lengths and memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib import ticker

from wattkeeper.evaluation import pays
from wattkeeper.evaluation.pays import Result

_STYLES = {
    "vllm-v0": ("#9aa3ad", "-"),
    "vllm-v1-512": ("#7d3c98", "--"),
    pays.BASELINE: ("black", "-"),
    "capped": ("#1b7f5c", "--"),
    "mc-sf": ("#5aa9e6", ":"),
    "wait": ("#b03060", "-"),
    "clocked-wait": ("#d98b1f", "-"),
    "paced": ("#2c5f9e", "-"),
}
_DPI = 80


def draw(rows: Sequence[Result], folder: Path) -> list[Path]:
    """Write the pictures into a folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, field, label in (
        ("latency", "e2e_seconds", "mean end-to-end, s"),
        ("energy", "joules_per_token", "J per token answered"),
    ):
        kinds = list(dict.fromkeys(row.lengths for row in rows))
        figure, axes = plt.subplots(
            2, len(kinds), figsize=(2.9 * len(kinds), 6.4), constrained_layout=True, squeeze=False
        )
        for line, tight in enumerate((False, True)):
            for column, lengths in enumerate(kinds):
                part = [row for row in rows if (row.lengths, row.tight) == (lengths, tight)]
                _panel(axes[line][column], part, field)
                axes[line][column].set_title(f"{lengths}, {'tight' if tight else 'ample'} KV", fontsize=10)
            axes[line][0].set_ylabel(label)
        for panel in axes[1]:
            panel.set_xlabel("load")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(_STYLES), frameon=False)
        paths.append(folder / f"pays-{name}.png")
        figure.savefig(paths[-1], dpi=_DPI)
        plt.close(figure)
    return paths


def _panel(axes: Any, part: Sequence[Result], field: str) -> None:
    for policy, (colour, line) in _STYLES.items():
        points = [
            (pays.LOADS[row.load], getattr(row, field).mean)
            for row in part
            if row.policy == policy and getattr(row, field) is not None
        ]
        axes.plot(*zip(*points, strict=True) if points else ((), ()), line, color=colour, marker=".", label=policy)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(ticker.LogLocator(subs=(1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.yaxis.set_minor_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.set_xticks(list(pays.LOADS.values()), [f"{load:g}" for load in pays.LOADS.values()])
    axes.grid(alpha=0.25, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
