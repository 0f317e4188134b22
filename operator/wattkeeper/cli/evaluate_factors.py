"""`wattkeeper evaluate factors`: what drives energy in public measured runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import MeasuredData, Output, Page
from wattkeeper.domain.data_files import data_folder


@explained
def factors(
    data: MeasuredData = None,
    seed: Annotated[int, typer.Option(min=0, help="Of folds, shuffles and intervals.")] = 0,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write pictures into.")] = None,
    page: Page = None,
) -> None:
    """Say what drives energy in public measured runs: by dimension, cause and factor, with interactions and a check."""
    # Imported here: the other commands shall not wait for the learner and the plotting library.
    from wattkeeper.evaluation import factor_analysis, factor_pictures, factor_tables, rendering

    if page is not None:
        rendering.check_place(page, name="evaluate factors")
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    progress, console = Console(stderr=True), Console()
    found = factor_analysis.analyse(
        data_folder(data), seed=seed, report=lambda line: progress.print(line, style="dim", highlight=False)
    )
    made = factor_tables.tables(found)
    if output is Output.JSON:
        typer.echo(json.dumps(asdict(found), default=lambda array: array.tolist(), indent=2))
    else:
        console.print(factor_tables.summary(found), highlight=False, soft_wrap=True)
        rendering.show(made)
    if page is not None:
        rendering.fill(page, name="evaluate factors", tables=made, intro=factor_tables.summary(found))
    if pictures is not None:
        for path in factor_pictures.draw(found, pictures):
            progress.print(f"wrote {path}", highlight=False, soft_wrap=True)
