"""Pictures of predictions against measured tables: predicted over measured, curves, and errors over rate and batch."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, NullFormatter

from wattkeeper.evaluation import measured_result, ml_energy, nlr, nlr_baselines
from wattkeeper.evaluation.measured_result import Evaluation

_DPI = 72
_LABELS = {
    "ttft_p50": "TTFT, median",
    "ttft_p90": "TTFT, 90th percentile",
    "tpot_p50": "TPOT, median",
    "tpot_p90": "TPOT, 90th percentile",
    "p50": "ITL, median",
    "p95": "ITL, 95th percentile",
}
_GPU_COLOURS = {"nvidia-h100-sxm": "#1b7f5c", "nvidia-b200": "#7d3c98"}
_METHOD_COLOURS = {
    nlr.FULL: "#1b7f5c",
    nlr.LINEAR: "#d68910",
    nlr_baselines.CHECK_BELOW: "#2e6da4",
    nlr_baselines.CHAIN: "#c0392b",
    nlr_baselines.INTERPOLATION: "#8a8f98",
}


def nlr_pictures(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Latency over the rate (one workload, held-out rates), and the error of each method over the rate."""
    rows = evaluation.rows[evaluation.rows["split"] == nlr.RATES]
    return [_nlr_curves(rows, folder / "nlr-latency.png"), _nlr_errors(rows, evaluation.goal, folder / "nlr-error.png")]


def ml_energy_pictures(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Predicted over measured after one calibration run, and the error over the batch."""
    rows = evaluation.rows[evaluation.rows["split"] == ml_energy.MIDDLE]
    return [
        _ml_energy_scatter(rows, evaluation.goal, folder / "ml-energy-scatter.png"),
        _ml_energy_errors(rows, evaluation.goal, folder / "ml-energy-error.png"),
    ]


def _nlr_curves(rows: pd.DataFrame, path: Path) -> Path:
    chosen = "short prompts|512"
    figure, grid = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for axes, kind in zip(grid, ("ttft", "tpot"), strict=True):
        for percentile, marker in (("p50", "o"), ("p90", "s")):
            part = rows[(rows["workload"] == chosen) & (rows["target"] == f"{kind}_{percentile}")]
            measured = part[part["method"] == nlr.FULL].sort_values("x")
            label = f"measured {percentile}"
            axes.plot(
                measured["x"], 1e3 * measured["measured"], marker, color="black", ms=4, label=label, fillstyle="none"
            )
            for method in (nlr.FULL, nlr_baselines.CHECK_BELOW, nlr_baselines.CHAIN):
                line = part[part["method"] == method].sort_values("x").dropna()
                label = method if percentile == "p50" else "_"
                axes.plot(line["x"], 1e3 * line["predicted"], color=_METHOD_COLOURS[method], label=label, lw=1.4)
        shown = (rows["workload"] == chosen) & (rows["method"] == nlr.FULL) & rows["target"].str.startswith(kind)
        top = rows[shown]["measured"].max()
        axes.set_ylim(0, 1.35e3 * top)
        _log_x(axes, "requests per second")
        axes.set_ylabel(f"{kind.upper()}, ms")
        _plain(axes)
    grid[0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle("Llama-3.1-70B, short prompts, answers cut at 512 tokens; every rate was held out", fontsize=10)
    return _saved(figure, path)


def _nlr_errors(rows: pd.DataFrame, goal: float, path: Path) -> Path:
    targets = list(dict.fromkeys(rows["target"]))
    figure, grid = plt.subplots(2, 2, figsize=(10.5, 6.2), constrained_layout=True, sharex=True, sharey=True)
    for axes, target in zip(grid.flat, targets, strict=True):
        for method, colour in _METHOD_COLOURS.items():
            part = rows[(rows["method"] == method) & (rows["target"] == target)]
            error = part.assign(error=measured_result.errors(part)).groupby("x")["error"].median().dropna()
            axes.plot(error.index, 100.0 * error, "o-", color=colour, label=method, ms=3, lw=1.2)
        _goal(axes, goal)
        axes.set_title(_LABELS[target], fontsize=10)
        _log_x(axes, "requests per second")
        axes.set_yscale("log")
        axes.set_ylim(0.5, 300)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        _plain(axes)
        axes.label_outer()
    for axes in grid[:, 0]:
        axes.set_ylabel("error, % (median of six workloads)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return _saved(figure, path)


def _ml_energy_scatter(rows: pd.DataFrame, goal: float, path: Path) -> Path:
    figure, grid = plt.subplots(1, 2, figsize=(10, 5), constrained_layout=True)
    for axes, target in zip(grid, ("p50", "p95"), strict=True):
        part = rows[(rows["target"] == target) & (rows["method"] == ml_energy.LEARNED)]
        for gpu, colour in _GPU_COLOURS.items():
            points = part[part["gpu"] == gpu]
            axes.plot(
                1e3 * points["measured"], 1e3 * points["predicted"], ".", color=colour, ms=4, alpha=0.6, label=gpu
            )
        both = 1e3 * part[["measured", "predicted"]].to_numpy()
        ends = np.array([both.min() * 0.9, both.max() * 1.1])
        axes.plot(ends, ends, color="black", lw=0.8)
        axes.fill_between(
            ends, ends * (1 - goal), ends * (1 + goal), color="black", alpha=0.08, lw=0, label=f"within {goal:.0%}"
        )
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured, ms", ylabel="predicted, ms")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_aspect("equal")
        axes.set_title(_LABELS[target], fontsize=10)
        _plain(axes)
    grid[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(
        "One calibration run per curve at the middle batch; all relatives of the model held out", fontsize=10
    )
    return _saved(figure, path)


def _ml_energy_errors(rows: pd.DataFrame, goal: float, path: Path) -> Path:
    figure, grid = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True, sharey=True)
    styles = {ml_energy.LEARNED: "o-", ml_energy.PHYSICS: "s:", ml_energy.LINE: "^--"}
    names = {gpu: gpu.removeprefix("nvidia-").removesuffix("-sxm").upper() for gpu in _GPU_COLOURS}
    for axes, target in zip(grid, ("p50", "p95"), strict=True):
        for method, style in styles.items():
            for gpu, colour in _GPU_COLOURS.items():
                part = rows[(rows["method"] == method) & (rows["target"] == target) & (rows["gpu"] == gpu)]
                error = part.assign(error=measured_result.errors(part)).groupby("x")["error"]
                median = error.median()[error.size() >= 10]
                axes.plot(
                    median.index, 100.0 * median, style, color=colour, ms=4, lw=1.2, label=f"{names[gpu]}: {method}"
                )
        _goal(axes, goal)
        _log_x(axes, "max_num_seqs")
        axes.set_title(_LABELS[target], fontsize=10)
        axes.set_ylim(0, 60)
        _plain(axes)
    grid[0].set_ylabel("median error, %")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return _saved(figure, path)


def _goal(axes: Any, goal: float) -> None:
    axes.axhline(100.0 * goal, color="black", lw=0.8, ls="--")
    axes.annotate(
        f"goal {goal:.0%}", (1.0, 100.0 * goal), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
    )


def _log_x(axes: Any, label: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
    return path
