"""Pictures of a replay: over time, energy against attainment, and the distributions of both latencies."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from wattkeeper.replay import table, timeline
from wattkeeper.replay.result import QUANTILES, ReplayReport
from wattkeeper.replay.style import DPI, GOAL_COLOUR, OURS, Look, dress, entry, logarithmic, looks
from wattkeeper.replay.table import Row

_SHOWN_OVER_TIME = 4
_LEAST_MISSED = 1e-4
_MISSED_TICKS = (0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0001)
_LEAST_SECONDS = 1e-4
"""Shorter latencies are drawn here, as the axis is logarithmic."""
_PERCENTILE_COLOUR = "#555555"


def draw(report: ReplayReport, folder: Path, *, shown: Sequence[str] = ()) -> list[Path]:
    """Write all pictures into a folder, which is made where it is not there; returns their paths, by trace.

    `shown` are the policies drawn over time; empty: the baseline, Wattkeeper and the best of the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for facts in report.traces:
        found = table.rows(report, facts.name)
        if not found:
            continue
        chosen = [row.policy for row in found if row.policy in shown] or _chosen(report, found)
        made = [folder / f"{stem(facts.name)}-{name}.png" for name in ("time", "plane", "latency")]
        timeline.draw(report, facts.name, chosen, made[0])
        _plane(report, facts.name, found, made[1])
        _distributions(report, facts.name, made[2])
        paths += made
    return paths


def stem(trace: str) -> str:
    """How the names of a trace's pictures begin."""
    return "".join(letter if letter.isalnum() else "-" for letter in trace.lower()).strip("-")


def _chosen(report: ReplayReport, found: Sequence[Row]) -> list[str]:
    """The baseline, Wattkeeper, and of the others those with the least energy, the ones that reach the goal first."""
    first = [row.policy for row in found if row.policy in (report.baseline, OURS)]
    others = sorted(
        (row for row in found if row.policy not in first), key=lambda row: (not row.reached, row.energy_kwh)
    )
    chosen = {*first, *(row.policy for row in others[: max(0, _SHOWN_OVER_TIME - len(first))])}
    return [row.policy for row in found if row.policy in chosen]


def _plane(report: ReplayReport, trace: str, found: Sequence[Row], path: Path) -> None:
    """Energy against the share of requests within the SLO, on a scale that spreads what is near 100 %."""
    colours = looks(report.policies())
    figure, axes = plt.subplots(figsize=(9.5, 5.4), constrained_layout=True)
    for row in found:
        _point(axes, row, colours[row.policy])
    goal = 1.0 - report.goals.min_attainment
    axes.set_yscale("log")
    missed = [_missed(row.attainment.value) for row in found if row.attainment is not None]
    worst = min(1.0, 1.6 * max([*missed, 2.0 * goal]))
    best = 0.6 * min([*missed, max(goal, _LEAST_MISSED)])
    axes.set_ylim(worst, best)
    if goal > 0.0:
        axes.axhspan(worst, goal, color=GOAL_COLOUR, alpha=0.07, linewidth=0)
        axes.axhline(
            goal,
            color=GOAL_COLOUR,
            linewidth=1.2,
            linestyle="--",
            label=f"goal: {100 * report.goals.min_attainment:g} %",
        )
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in _MISSED_TICKS if best <= tick <= worst]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * (1 - value):g} %"))
    axes.set_xlabel("GPU energy, kWh")
    axes.set_ylabel("requests within the SLO")
    if _LEAST_MISSED in missed:
        axes.set_ylabel(f"requests within the SLO\n({100 * (1 - _LEAST_MISSED):g} % and more are drawn there)")
    low, high = axes.get_xlim()
    axes.set_xlim(max(0.0, low - 0.05 * (high - low)), high + 0.05 * (high - low))
    _saved_axis(axes, report, found)
    figure.suptitle(f"{trace}: energy against service", fontsize=12)
    dress(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _point(axes: Any, row: Row, look: Look) -> None:
    if row.attainment is None:
        return
    missed = _missed(row.attainment.value)
    across = None
    if row.saved is not None and row.saved.low is not None and row.saved.high is not None and row.saved.value < 100.0:
        # Savings in percent to the kWh they stand for.
        per_percent = row.energy_kwh / (100.0 - row.saved.value)
        across = [[per_percent * (row.saved.high - row.saved.value)], [per_percent * (row.saved.value - row.saved.low)]]
    up = None
    if row.attainment.low is not None and row.attainment.high is not None:
        up = [[missed - _missed(row.attainment.high)], [_missed(row.attainment.low) - missed]]
    axes.errorbar(
        [row.energy_kwh], [missed], xerr=across, yerr=up, color=look.colour, marker=look.marker, linestyle="none",
        markersize=13 if look.marker == "*" else 8, elinewidth=1.0, capsize=2.5, label=row.policy,
        markeredgecolor="white", markeredgewidth=0.6, zorder=3,
    )  # fmt: skip


def _missed(percent: float) -> float:
    return max(_LEAST_MISSED, 1.0 - percent / 100.0)


def _saved_axis(axes: Any, report: ReplayReport, found: Sequence[Row]) -> None:
    """Savings against the baseline along the top."""
    base = next((row.energy_kwh for row in found if row.policy == report.baseline), 0.0)
    if base <= 0.0:
        return
    top = axes.secondary_xaxis(
        "top",
        functions=(lambda kwh: 100.0 * (1.0 - kwh / base), lambda percent: base * (1.0 - percent / 100.0)),
    )
    top.set_xlabel(f"saved against {report.baseline}, %")
    top.spines["top"].set_visible(False)


def _distributions(report: ReplayReport, trace: str, path: Path) -> None:
    """Both latencies of finished requests, each policy with its first seed."""
    colours = looks(report.policies())
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.8), constrained_layout=True, sharey=True)
    drawn = []
    for policy in report.policies():
        runs = report.of(policy, trace)
        if not runs:
            continue
        look = colours[policy]
        for axes, latency, scale in ((panels[0], runs[0].ttft, 1.0), (panels[1], runs[0].tpot, 1000.0)):
            if latency.grid_seconds:
                values = [scale * max(value, _LEAST_SECONDS) for value in latency.grid_seconds]
                axes.plot(values, QUANTILES, look.line, color=look.colour, linewidth=look.width)
        drawn.append(entry(policy, colour=look.colour, line=look.line, width=look.width))
    goals = report.goals
    for axes, target, scale, label in (
        (panels[0], goals.ttft_seconds, 1.0, "time to first token (TTFT), s"),
        (panels[1], goals.tpot_seconds, 1000.0, "time per output token (TPOT), ms"),
    ):
        if target is not None:
            axes.axvline(scale * target, color=GOAL_COLOUR, linewidth=1.2, linestyle="--")
        axes.axhline(goals.percentile / 100.0, color=_PERCENTILE_COLOUR, linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        logarithmic(axes.xaxis)
        axes.set_xlabel(label)
        dress(axes)
    panels[0].set_ylabel("share of finished requests")
    panels[0].set_ylim(0.0, 1.005)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    drawn.append(entry("SLO target", colour=GOAL_COLOUR, line="--"))
    drawn.append(entry(f"p{goals.percentile:g}", colour=_PERCENTILE_COLOUR, line=":", width=0.8))
    figure.suptitle(f"{trace}: latencies of finished requests", fontsize=12)
    figure.legend(handles=drawn, loc="outside right center", frameon=False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
