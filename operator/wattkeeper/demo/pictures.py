"""Pictures of the day: rate, replicas, power limit, power against the static fleet, latencies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from wattkeeper.demo.outcome import Outcome
from wattkeeper.demo.watch import Action
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.timeline import Point

LIVE, STATIC, LIMIT, ARGUMENTS = "#1b7f5c", "#8a8f98", "#c0392b", "#7d3c98"
OVERVIEW = "day.png"


def draw(*, live: Outcome, static: Outcome, actions: Sequence[Action], slo: SloTargets, folder: Path) -> list[Path]:
    """Write the pictures into a folder and return their paths, the overview first."""
    panels: list[tuple[str, Callable[[Any], None]]] = [
        ("rate", lambda axes: _rate(axes, live)),
        ("replicas", lambda axes: _replicas(axes, live, static)),
        ("levers", lambda axes: _levers(axes, live, actions)),
        ("power", lambda axes: _power(axes, live, static)),
        ("latency", lambda axes: _latency(axes, live, static, slo)),
    ]
    overview = folder / OVERVIEW
    figure, all_axes = plt.subplots(len(panels), 1, figsize=(10, 13), sharex=True, constrained_layout=True)
    for axes, (_, panel) in zip(all_axes, panels, strict=True):
        panel(axes)
        axes.label_outer()
    figure.savefig(overview, dpi=110)
    plt.close(figure)
    paths = [overview]
    for name, panel in panels:
        figure, axes = plt.subplots(figsize=(10, 3.2), constrained_layout=True)
        panel(axes)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths


def _hours(points: Sequence[Point]) -> list[float]:
    return [point.time_seconds / 3600.0 for point in points]


def _dress(axes: Any, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_xlabel("hour of the day")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _rate(axes: Any, live: Outcome) -> None:
    axes.plot(_hours(live.points), [point.requests_per_second for point in live.points], color="#2c5f9e")
    _dress(axes, "requests / s")


def _replicas(axes: Any, live: Outcome, static: Outcome) -> None:
    hours = _hours(live.points)
    axes.step(hours, [point.ready for point in live.points], where="pre", color=LIVE, label="with Wattkeeper")
    axes.plot(_hours(static.points), [point.ready for point in static.points], "--", color=STATIC, label="static peak")
    axes.legend(loc="best", frameon=False)
    _dress(axes, "ready replicas")


def _levers(axes: Any, live: Outcome, actions: Sequence[Action]) -> None:
    axes.step(_hours(live.points), [point.cap_watts for point in live.points], where="pre", color=LIVE)
    _dress(axes, "power limit, W per GPU")
    top = axes.get_ylim()[1]
    axes.set_ylim(0, top * 1.2)
    changes = [action for action in actions if action.kind == "arguments"]
    last = live.points[-1].time_seconds / 3600.0 if live.points else 0.0
    for index, action in enumerate(changes):
        hour = action.time_seconds / 3600.0
        axes.axvline(hour, color=ARGUMENTS, linewidth=1)
        upcoming = changes[index + 1].time_seconds / 3600.0 if index + 1 < len(changes) else last
        # A label needs a quarter of the width to the right of its line.
        if upcoming - hour > last / 4:
            axes.annotate(
                action.change.removeprefix("--"), (hour, top * 1.16), xytext=(4, 0), textcoords="offset points",
                fontsize=8, va="top", color=ARGUMENTS,
            )  # fmt: skip


def _power(axes: Any, live: Outcome, static: Outcome) -> None:
    axes.plot(
        _hours(static.points),
        [point.power_watts / 1000 for point in static.points],
        color=STATIC,
        label=f"static peak, {static.kilowatt_hours:.1f} kWh",
    )
    axes.plot(
        _hours(live.points),
        [point.power_watts / 1000 for point in live.points],
        color=LIVE,
        label=f"with Wattkeeper, {live.kilowatt_hours:.1f} kWh",
    )
    axes.legend(loc="best", frameon=False)
    _dress(axes, "GPU power, kW")


def _latency(axes: Any, live: Outcome, static: Outcome, slo: SloTargets) -> None:
    for series, goal, style, name in (
        ("ttft_seconds", slo.ttft_seconds, "-", "TTFT"),
        ("tpot_seconds", slo.tpot_seconds, ":", "TPOT"),
    ):
        if goal is None:
            continue
        for outcome, color, who in ((static, STATIC, "static"), (live, LIVE, "Wattkeeper")):
            values = getattr(outcome.latencies, series) / goal
            axes.plot(
                outcome.latencies.times_seconds / 3600.0,
                values,
                style,
                color=color,
                label=f"{name} p{outcome.percentile:g}, {who}",
            )
    axes.axhline(1.0, color=LIMIT, linewidth=1)
    axes.legend(loc="best", frameon=False, ncols=2, fontsize=8)
    _dress(axes, "latency / target")
