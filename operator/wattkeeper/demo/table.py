"""The live table of the demo, and its plain form where the output is no terminal."""

from dataclasses import dataclass

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from wattkeeper.demo.watch import Action
from wattkeeper.twin.fleet import Phase, Service

RECENT_REQUESTS = 2000
PLAIN_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What is shown at one moment. Seconds are simulated."""

    time_seconds: float
    span_seconds: float
    rate: float
    ready: int
    starting: int
    draining: int
    power_watts: float
    cap_watts: float
    token_budget: int
    ttft_seconds: float | None
    tpot_seconds: float | None
    attainment: float | None
    energy_kwh: float
    reason: str
    counts: dict[str, int]
    last_action: Action | None


def clock_text(seconds: float) -> str:
    """Time of day of the simulated day."""
    minutes = int(seconds // 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def recent_latency(service: Service, percentile: float) -> tuple[float | None, float | None]:
    """Percentile of TTFT and TPOT over the requests finished last."""
    ttft, tpot = service.ledger.recent(RECENT_REQUESTS)
    if not len(ttft):
        return None, None
    return float(np.percentile(ttft, percentile)), float(np.percentile(tpot, percentile))


def phases(service: Service) -> tuple[int, int, int]:
    """Pods that are ready, starting and draining."""
    found = [member.phase for member in service.members.values()]
    return found.count(Phase.READY), found.count(Phase.STARTING), found.count(Phase.DRAINING)


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"


def _rows(picture: Picture) -> list[tuple[str, str]]:
    extra = "".join(
        f", {count} {word}" for count, word in ((picture.starting, "starting"), (picture.draining, "draining")) if count
    )
    share = "-" if picture.attainment is None else f"{100 * picture.attainment:.2f} %"
    action = picture.last_action
    return [
        ("requests", f"{picture.rate:.1f} /s"),
        ("replicas", f"{picture.ready} ready{extra}"),
        ("power limit", f"{picture.cap_watts:.0f} W per GPU"),
        ("token budget", str(picture.token_budget)),
        ("power", f"{picture.power_watts / 1000:.2f} kW"),
        ("energy so far", f"{picture.energy_kwh:.2f} kWh"),
        ("TTFT, TPOT p99", f"{_milliseconds(picture.ttft_seconds)}, {_milliseconds(picture.tpot_seconds)}"),
        ("requests in SLO", share),
        ("reason", picture.reason or "-"),
        ("actions", ", ".join(f"{count} {kind}" for kind, count in picture.counts.items())),
        ("last action", f"{clock_text(action.time_seconds)} {action.kind} {action.change}" if action else "-"),
    ]


class Display:
    """Use as a context; `show` may be called as often as one likes."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._shown = -1

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, picture: Picture) -> None:
        """Draw, or print a line each twelfth of the day."""
        share = min(1.0, picture.time_seconds / picture.span_seconds)
        if self._live is not None:
            self._live.update(self._render(picture, share), refresh=True)
            return
        step = int(share * PLAIN_STEPS)
        if step > self._shown:
            self._shown = step
            text = "; ".join(f"{name} {value}" for name, value in _rows(picture)[:8])
            self._console.print(f"{clock_text(picture.time_seconds)}  {text}", highlight=False)

    def _render(self, picture: Picture, share: float) -> RenderableType:
        table = Table(title=f"{self._title}, {clock_text(picture.time_seconds)}", show_header=False, min_width=64)
        table.add_column(style="cyan")
        table.add_column(min_width=44)
        for name, value in _rows(picture):
            table.add_row(name, value)
        return Group(table, ProgressBar(total=1.0, completed=share, width=64))
