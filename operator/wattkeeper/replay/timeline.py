"""A trace over time under a few policies: requests, replicas, limits, power and latencies."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator, MultipleLocator

from wattkeeper.domain.workload import FloatArray
from wattkeeper.replay.result import Columns, ReplayReport, Run
from wattkeeper.replay.style import DPI, GOAL_COLOUR, Look, dress, entry, logarithmic, looks

_POINTS = 360
"""Drawn over the width; more intervals are put together."""
_TICKS = 13
Values = Sequence[float | int | None]


def draw(report: ReplayReport, trace: str, policies: Sequence[str], path: Path) -> None:
    """Write the picture of these policies, each with its first seed."""
    runs = [report.of(policy, trace)[0] for policy in policies]
    colours = looks(report.policies())
    panels = [_requests, _replicas, *([_limits] if _has_limits(runs) else []), _power, _ttft, _tpot]
    figure, all_axes = plt.subplots(
        len(panels), 1, figsize=(11, 2.05 * len(panels) + 0.6), sharex=True, constrained_layout=True
    )
    for axes, panel in zip(all_axes, panels, strict=True):
        panel(axes, report, runs, colours)
        dress(axes)
    last = max(run.columns.time_seconds[-1] for run in runs)
    unit, seconds, step = _unit(last)
    all_axes[-1].set_xlabel(f"{unit} since the trace began")
    all_axes[-1].set_xlim(0, last / seconds)
    all_axes[-1].xaxis.set_major_locator(MultipleLocator(step))
    handles = [
        entry(run.policy, colour=look.colour, line=look.line, width=look.width)
        for run in runs
        for look in (colours[run.policy],)
    ]
    handles.append(entry("SLO target", colour=GOAL_COLOUR, line="--"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)), frameon=False, title=trace)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _unit(last: float) -> tuple[str, float, float]:
    """Name of the axis' unit, its seconds, and the distance of its ticks, for a trace that ends at `last` seconds."""
    if last > 3 * 86400.0:
        return "days", 86400.0, 1.0
    if last > 2 * 3600.0:
        return "hours", 3600.0, _step(last / 3600.0, (1.0, 2.0, 3.0, 4.0, 6.0))
    return "minutes", 60.0, _step(last / 60.0, (1.0, 2.0, 5.0, 10.0))


def _step(length: float, steps: Sequence[float]) -> float:
    """The smallest of `steps` that leaves few enough ticks, else the largest."""
    return next((step for step in steps if length / step <= _TICKS), steps[-1])


def _group(columns: Columns) -> int:
    return max(1, math.ceil(len(columns.time_seconds) / _POINTS))


def binned(values: Values, size: int, join: Callable[..., Any]) -> FloatArray:
    """`values` put together in groups of `size`; NaN where a group has none."""
    found = np.array([np.nan if value is None else float(value) for value in values])
    found = np.concatenate([found, np.full(-len(found) % size, np.nan)]).reshape(-1, size)
    known = ~np.isnan(found).all(axis=1)
    made = np.full(len(found), np.nan)
    made[known] = join(found[known], axis=1)
    return made


def _times(columns: Columns) -> FloatArray:
    """Ends of the groups, in the unit of the axis."""
    size = _group(columns)
    times = np.array(columns.time_seconds)
    ends = np.minimum(np.arange(size, len(times) + size, size), len(times)) - 1
    return np.asarray(times[ends] / _unit(float(times[-1]))[1])


def _line(
    axes: Any, run: Run, values: Values, look: Look, *, join: Callable[..., Any] = np.nanmean, steps: bool = False
) -> None:
    axes.plot(
        _times(run.columns), binned(values, _group(run.columns), join), look.line, color=look.colour,
        linewidth=look.width, drawstyle="steps-pre" if steps else "default",
    )  # fmt: skip


def _requests(axes: Any, report: ReplayReport, runs: Sequence[Run], colours: dict[str, Look]) -> None:
    del report, colours
    columns = runs[0].columns
    axes.fill_between(
        _times(columns), binned(columns.requests_per_second, _group(columns), np.nanmean), color="#9ecae1", linewidth=0
    )
    axes.set_ylabel("requests / s")
    axes.set_ylim(bottom=0)


def _replicas(axes: Any, report: ReplayReport, runs: Sequence[Run], colours: dict[str, Look]) -> None:
    del report
    for run in runs:
        _line(axes, run, run.columns.ready, colours[run.policy], join=np.nanmax, steps=True)
    axes.set_ylabel("ready replicas")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _has_limits(runs: Sequence[Run]) -> bool:
    return any(value is not None for run in runs for value in (*run.columns.cap_watts, *run.columns.clock_limit_mhz))


def _limits(axes: Any, report: ReplayReport, runs: Sequence[Run], colours: dict[str, Look]) -> None:
    """Power limits where one policy sets them, else clock limits."""
    del report
    watts = any(value is not None for run in runs for value in run.columns.cap_watts)
    for run in runs:
        values = run.columns.cap_watts if watts else run.columns.clock_limit_mhz
        if any(value is not None for value in values):
            _line(axes, run, values, colours[run.policy], join=np.nanmax, steps=True)
    axes.set_ylabel("power limit,\nW per GPU" if watts else "clock limit, MHz")
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low - 0.1 * high), 1.05 * high)


def _power(axes: Any, report: ReplayReport, runs: Sequence[Run], colours: dict[str, Look]) -> None:
    del report
    for run in runs:
        _line(axes, run, [watts / 1000.0 for watts in run.columns.power_watts], colours[run.policy])
    axes.set_ylabel("GPU power, kW")
    axes.set_ylim(bottom=0)


def _ttft(axes: Any, report: ReplayReport, runs: Sequence[Run], colours: dict[str, Look]) -> None:
    _latency(
        axes, [(run, run.columns.ttft_p95_seconds) for run in runs], colours, "p95 TTFT, s", report.goals.ttft_seconds
    )


def _tpot(axes: Any, report: ReplayReport, runs: Sequence[Run], colours: dict[str, Look]) -> None:
    goal = report.goals.tpot_seconds
    series = [
        (run, [None if value is None else 1000.0 * value for value in run.columns.tpot_p95_seconds]) for run in runs
    ]
    _latency(axes, series, colours, "p95 TPOT, ms", None if goal is None else 1000.0 * goal)


def _latency(
    axes: Any, series: Sequence[tuple[Run, Values]], colours: dict[str, Look], label: str, goal: float | None
) -> None:
    """The worst interval of each group: a mean would hide what users saw."""
    for run, values in series:
        _line(axes, run, values, colours[run.policy], join=np.nanmax)
    if goal is not None:
        axes.axhline(goal, color=GOAL_COLOUR, linewidth=1.2, linestyle="--", zorder=0.5)
    axes.set_yscale("log")
    logarithmic(axes.yaxis)
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, 2.0 * goal if goal is not None else high))
    group = _group(series[0][0].columns)
    axes.set_ylabel(label if group == 1 else f"{label}\n(worst of {group})")
