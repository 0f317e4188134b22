"""`wattkeeper evaluate`: how good the models are, measured."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wattkeeper.cli import (
    evaluate_energy,
    evaluate_factors,
    evaluate_kernels,
    evaluate_measured,
    evaluate_own_history,
    evaluate_twin,
)
from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import Page, PageOutput
from wattkeeper.domain import data_files

_commands = typer.Typer(no_args_is_help=True, help="Measure how good the models are.")


@_commands.callback()
def _evaluate() -> None:
    """Measure how good the models are."""


@_commands.command()
@explained
def sla(
    data: Annotated[
        Path | None,
        typer.Option(
            envvar=data_files.DATA_VARIABLE,
            help="Folder of recorded traffic. Left out: synthetic lengths and no recorded arrivals.",
        ),
    ] = None,
    output: Annotated[PageOutput, typer.Option(help="Form of the result.")] = PageOutput.TABLE,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write pictures into.")] = None,
    page: Page = None,
    points: Annotated[int, typer.Option(min=8, help="Operating points.")] = 512,
    requests: Annotated[int, typer.Option(min=500, help="Requests of each.")] = 40_000,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps simulated runs for the next time.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes that simulate; default: one per core.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes another grid.")] = 0,
    replay: Annotated[bool, typer.Option(help="Replay a few thousand requests of each point as well.")] = True,
) -> None:
    """Hold the latency model against the exact stepper on a grid of operating points that nothing was tuned on."""
    # Imported here: the other commands shall not wait for matplotlib and LightGBM.
    from wattkeeper.evaluation import attainment_table, goals, rendering, tables, verdict_tables
    from wattkeeper.evaluation import pictures as drawing
    from wattkeeper.evaluation import sla as evaluation

    settings = evaluation.Settings(
        data=None if data is None else data_files.data_folder(data),
        points=points,
        requests=requests,
        seed=seed,
        cache=cache,
        processes=processes or os.cpu_count() or 1,
        replay=replay,
    )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    def progress(what: str, total: int) -> Callable[[int], None]:
        task = bar.add_task(what, total=total)
        return lambda count: bar.advance(task, count)

    with bar:
        found = evaluation.evaluate(settings, progress=progress)
    made = [goals.goals(found), *verdict_tables.verdict_tables(found), attainment_table.attainment_table(found)]
    made += tables.tables(found)
    if pictures is not None:
        drawing.draw(found, pictures)
    if page is not None:
        rendering.fill(page, name="evaluate sla", tables=made, intro=found.summary)
    match output:
        case PageOutput.JSON:
            typer.echo(json.dumps({"summary": found.summary, "tables": [rendering.plain(table) for table in made]}))
        case PageOutput.MARKDOWN:
            typer.echo(found.summary + "\n\n" + "\n".join(rendering.markdown(table) for table in made))
        case PageOutput.TABLE:
            console = Console()
            console.print(found.summary, highlight=False, soft_wrap=True)
            for table in made:
                console.print(rendering.rich(table))


@_commands.command()
@explained
def buckets(
    data: Annotated[Path | None, typer.Option("--data", help="Folder of recorded lengths.")] = None,
    requests: Annotated[int, typer.Option(min=1000, help="Requests of each simulated run.")] = 12_000,
) -> None:
    """What it costs a verdict that lengths are known in vLLM's histogram buckets only."""
    from wattkeeper.evaluation import buckets as evaluation

    rows = evaluation.run(data_files.data_folder(data), requests=requests)
    Console().print(evaluation.table(rows))


_commands.command()(evaluate_factors.factors)
_commands.command()(evaluate_kernels.kernels)
_commands.command()(evaluate_measured.measured)
_commands.command()(evaluate_twin.twin)
_commands.command()(evaluate_energy.energy)
_commands.command()(evaluate_energy.decisions)
_commands.command()(evaluate_own_history.own_history)


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.add_typer(_commands, name="evaluate")
