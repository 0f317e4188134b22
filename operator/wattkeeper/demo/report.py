"""The report: numbers in words for the terminal, and an HTML page beside the pictures."""

import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from wattkeeper.demo.outcome import Outcome
from wattkeeper.demo.table import clock_text
from wattkeeper.demo.watch import Action

PARKED_WATTS = 70.0
"""Per GPU that no pod holds, for the second way to count."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found. `wall_seconds` is what the run took, `lag_seconds` how far the twin ever fell behind."""

    title: str
    source: str
    hours: float
    speed: float
    replicas: int
    model: str
    accelerator: str
    slo_text: str
    live: Outcome
    static: Outcome
    actions: tuple[Action, ...]
    counts: dict[str, int]
    wall_seconds: float
    lag_seconds: float
    status: dict[str, Any]

    @property
    def saved_percent(self) -> float:
        """Energy saved against the static fleet, freed GPUs counted as given back."""
        return 100.0 * (1.0 - self.live.energy_joules / self.static.energy_joules)

    @property
    def saved_percent_parked(self) -> float:
        """The same with freed GPUs still powered and idle."""
        parked = max(0.0, self.static.gpu_seconds - self.live.gpu_seconds) * PARKED_WATTS
        return 100.0 * (1.0 - (self.live.energy_joules + parked) / self.static.energy_joules)

    def lines(self) -> list[str]:
        """The summary for the terminal."""
        live, static = self.live, self.static
        return [
            f"Energy      {live.kilowatt_hours:.2f} kWh against {static.kilowatt_hours:.2f} kWh of a static fleet of "
            f"{self.replicas} replicas: {self.saved_percent:.1f} % saved "
            f"({self.saved_percent_parked:.1f} % if freed GPUs stay powered at {PARKED_WATTS:.0f} W)",
            f"Per token   {_number(live.joules_per_token)} J against {_number(static.joules_per_token)} J",
            f"In SLO      {_percent(live.attainment.share)} of {live.attainment.arrived:,} requests against "
            f"{_percent(static.attainment.share)} ({self.slo_text}; a lost request counts as missed)",
            f"Lost        {live.attainment.lost + live.attainment.unfinished} against "
            f"{static.attainment.lost + static.attainment.unfinished}",
            "Actions     " + ", ".join(f"{count} of {kind}" for kind, count in self.counts.items()),
            f"Run         {self.hours:g} h at {self.speed:g} times real speed, {self.wall_seconds:.0f} s",
        ]

    def as_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "title": self.title,
            "hours": self.hours,
            "speed": self.speed,
            "replicas": self.replicas,
            "energy_kwh": {"live": self.live.kilowatt_hours, "static": self.static.kilowatt_hours},
            "saved_percent": self.saved_percent,
            "saved_percent_with_parked_gpus": self.saved_percent_parked,
            "attainment": {"live": self.live.attainment.share, "static": self.static.attainment.share},
            "requests": {
                name: {
                    "arrived": outcome.attainment.arrived,
                    "finished": outcome.attainment.finished,
                    "lost": outcome.attainment.lost,
                    "unfinished": outcome.attainment.unfinished,
                }
                for name, outcome in (("live", self.live), ("static", self.static))
            },
            "actions": self.counts,
            "wall_seconds": self.wall_seconds,
            "largest_lag_seconds": self.lag_seconds,
        }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def write(report: Report, *, pictures: Sequence[Path], folder: Path) -> Path:
    """Write `index.html` and `result.json` beside the pictures; returns the page."""
    text = importlib.resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["clock"] = clock_text
    page = environment.from_string(text).render(
        report=report, lines=[line.split(None, 1) for line in report.lines()], pictures=[path.name for path in pictures]
    )
    target = folder / "index.html"
    target.write_text(page, encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    return target
