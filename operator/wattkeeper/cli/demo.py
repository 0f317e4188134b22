"""`wattkeeper demo`: the whole operator on one machine, without a cluster and without a GPU."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wattkeeper.domain.data_files import DATA_VARIABLE
from wattkeeper.domain.errors import WattkeeperError

DEFAULT_WALL_SECONDS = 200.0
"""A day at the default speed; start-up and report come on top."""


def demo(
    trace: Annotated[
        str | None,
        typer.Option(help="Play this instead: FILE[:OPTION=VALUE,...], a public trace, a generator (docs/traces.md)."),
    ] = None,
    data: Annotated[Path | None, typer.Option(envvar=DATA_VARIABLE, help="Folder of public data.")] = None,
    traffic: Annotated[str, typer.Option(help="Recorded day to play: code or conversation.")] = "code",
    hours: Annotated[float, typer.Option(min=0.5, max=168, help="How much of it; shorter traces are repeated.")] = 24.0,
    speed: Annotated[
        float | None,
        typer.Option(min=1, max=2000, help="Simulated seconds per second; left out: done in about four minutes."),
    ] = None,
    rate_scale: Annotated[float, typer.Option(min=0.001, help="Multiply the rate of --trace.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("demo-report"),
) -> None:
    """Play a day of traffic against a simulated fleet under the real operator, and report energy and SLO."""
    # Imported here: the other commands shall not wait for matplotlib.
    from wattkeeper.demo import run, scenario

    console = Console()
    try:
        if trace is None:
            requests = scenario.shipped_day(traffic=traffic, seed=seed, hours=hours)
            source = f"a recorded weekday of {traffic} requests (Azure 2024 rates, 2023 lengths), scaled down"
        else:
            requests = scenario.recorded(trace, seed=seed, hours=hours, rate_scale=rate_scale, data=data)
            source = Path(trace).name
        for note in requests.repairs:
            console.print(f"Note: {note}.", highlight=False)
        console.print(f"{len(requests):,} requests in {hours:g} h. Sizing the static fleet ...", highlight=False)
        played = scenario.build(
            trace=requests,
            title=f"Wattkeeper demo: {hours:g} h of {Path(trace).name if trace else traffic}",
            source=source,
        )
        console.print(
            f"A static fleet needs {played.replicas} replicas. Starting API, fleet and operator ...", highlight=False
        )
        settings = run.DemoSettings(speed=speed or max(1.0, hours * 3600.0 / DEFAULT_WALL_SECONDS), output=output)
        found = run.play(played, settings, console)
    except WattkeeperError as error:
        console.print(f"[red]The demo failed:[/red] {error}", highlight=False)
        raise typer.Exit(1) from error
    for line in found.lines():
        console.print(line, highlight=False)
    console.print(f"Report: {output / 'index.html'}", highlight=False)


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.command()(demo)
