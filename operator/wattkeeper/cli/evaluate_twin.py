"""`wattkeeper evaluate twin`: the twin's hardware tables against measured runs."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import MeasuredData, Output, Page
from wattkeeper.domain.data_files import data_folder


@explained
def twin(
    data: MeasuredData = None,
    seed: Annotated[int, typer.Option(min=0, help="Of lengths, answer orders and intervals.")] = 0,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write the picture into.")] = None,
    page: Page = None,
) -> None:
    """Say how far the twin's throughput, latency, watts and joules are from measured public runs."""
    # Imported here: the other commands shall not wait for the plotting library.
    from wattkeeper.evaluation import rendering, twin_measured, twin_tables

    progress, console = Console(stderr=True), Console()
    found = twin_measured.evaluate(
        data_folder(data), seed=seed, tell=lambda line: progress.print(line, highlight=False)
    )
    made, summary = twin_tables.tables(found), twin_tables.summary(found)
    if page is not None:
        rendering.fill(page, name="evaluate twin", tables=made, intro=summary)
    if output is Output.JSON:
        typer.echo(json.dumps(twin_tables.to_dict(found), indent=2))
    else:
        console.print(summary, highlight=False, soft_wrap=True)
        for table in made:
            console.print(rendering.rich(table))
    if pictures is not None:
        progress.print(f"wrote {twin_tables.picture(found, pictures)}", highlight=False, soft_wrap=True)
