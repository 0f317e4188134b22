"""`wattkeeper bench twin`: what simulated fleets cost and how exact sampled ones are."""

import dataclasses
import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import Output
from wattkeeper.domain import data_files


class Part(StrEnum):
    """What to measure."""

    COST = "cost"
    ERROR = "error"
    DAY = "day"
    WEEK = "week"


@explained
def twin(
    data: Annotated[
        Path | None,
        typer.Option(
            envvar=data_files.DATA_VARIABLE,
            help="Folder of measured data with traces/azure-2024-digitised and traces/azure-2023, needed.",
        ),
    ] = None,
    part: Annotated[
        list[Part] | None,
        typer.Option(help="Only this; may be given several times. Peak memory counts from the start of the command."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Traces per held-out hour, for the error.")] = 3,
    minutes: Annotated[float, typer.Option(min=1.0, help="Minutes of each held-out hour, for the error.")] = 60.0,
    simulated: Annotated[int, typer.Option(min=1, help="Replicas that are played in the sampled week.")] = 1,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
) -> None:
    """Say what simulated fleets cost per request, per day and per week, and how exact sampled fleets are."""
    from wattkeeper.bench import twin as benchmark

    parts = set(part or Part)
    source = benchmark.traffic(data_files.data_folder(data) / "traces")
    found: dict[str, list[Any]] = {}
    with Progress(console=Console(stderr=True), transient=True) as bar:

        def measured(name: str) -> Callable[[float], None]:
            task = bar.add_task(name, total=1.0)
            return lambda share: bar.update(task, completed=share)

        # The long runs first: what they need of memory shall not hide behind the others.
        if Part.DAY in parts:
            day = benchmark.long_run(
                source, first_day=benchmark.BUSIEST_DAY, days=1.0, simulated=None, progress=measured("day, exact")
            )
            found.setdefault("long", []).append(day)
        if Part.WEEK in parts:
            week = benchmark.long_run(
                source, first_day=0.0, days=7.0, simulated=simulated, progress=measured("week, sampled")
            )
            found.setdefault("long", []).append(week)
        if Part.COST in parts:
            found["cost"] = benchmark.costs(source)
        if Part.ERROR in parts:
            found["error"] = benchmark.errors(
                source, seeds=seeds, seconds=60.0 * minutes, progress=measured("sampled against exact")
            )
    if output is Output.JSON:
        plain = {name: [dataclasses.asdict(row) for row in rows] for name, rows in found.items()}
        typer.echo(json.dumps(plain, indent=2))
        return
    console = Console()
    if "long" in found:
        console.print(benchmark.long_table(found["long"]))
    if "cost" in found:
        console.print(benchmark.cost_table(found["cost"]))
    if "error" in found:
        console.print(benchmark.error_table(found["error"]))
