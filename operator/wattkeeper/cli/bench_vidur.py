"""`wattkeeper bench vidur`: the twin beside Microsoft's Vidur."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import Output, Page
from wattkeeper.domain.data_files import DATA_VARIABLE, data_folder


@explained
def vidur(
    vidur: Annotated[Path, typer.Option("--vidur", help="Folder of Vidur's repository.")],
    python: Annotated[Path, typer.Option(help="Python that has what Vidur imports.")],
    data: Annotated[Path | None, typer.Option(envvar=DATA_VARIABLE, help="Folder of recorded traffic, needed.")] = None,
    rate: Annotated[list[float] | None, typer.Option(min=0.01, help="Requests per second; may be repeated.")] = None,
    requests: Annotated[int, typer.Option(min=100, help="Requests of each run.")] = 2000,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each speed is measured.")] = 3,
    forests: Annotated[bool, typer.Option(help="Time Vidur with its own predictor as well.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the arrivals.")] = 0,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
    page: Page = None,
) -> None:
    """Play the same requests through the twin and through Vidur: how well they agree, and how fast each is."""
    # Imported here: the other commands shall not wait for it.
    from wattkeeper.bench import vidur as benchmark
    from wattkeeper.bench import vidur_tables
    from wattkeeper.evaluation import rendering

    progress = Console(stderr=True)
    settings = benchmark.Settings(
        vidur=vidur,
        python=python,
        data=data_folder(data),
        rates=tuple(rate) if rate else benchmark.RATES,
        requests=requests,
        rounds=rounds,
        forests=forests,
        seed=seed,
    )
    found = benchmark.run(settings, tell=lambda line: progress.print(line, highlight=False))
    made = [
        rendering.Table(key=each.key, title=each.title, note=each.note, columns=each.columns, rows=each.rows)
        for each in vidur_tables.tables(found)
    ]
    summary = vidur_tables.summary(found)
    if page is not None:
        rendering.fill(page, name="bench vidur", tables=made, intro=summary)
    if output is Output.JSON:
        typer.echo(json.dumps(vidur_tables.to_dict(found), indent=2))
        return
    console = Console()
    console.print(summary, highlight=False, soft_wrap=True)
    for table in made:
        console.print(rendering.rich(table))
