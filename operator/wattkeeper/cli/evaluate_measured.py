"""`wattkeeper evaluate measured`: the latency model against measured public tables."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import MeasuredData, Output
from wattkeeper.domain.data_files import data_folder


class Measured(StrEnum):
    """Tables to evaluate on."""

    NLR = "nlr"
    ML_ENERGY = "ml-energy"


@explained
def measured(
    data: MeasuredData = None,
    only: Annotated[Measured | None, typer.Option(help="One table; left out: all.")] = None,
    seed: Annotated[int, typer.Option(help="Of folds, answer orders and intervals.")] = 0,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write pictures into.")] = None,
) -> None:
    """Say how far latency predictions are off on measured public tables, beside simpler methods."""
    # Imported here: the other commands shall not wait for the learner and the plotting library.
    from wattkeeper.evaluation import measured as evaluation

    progress, console = Console(stderr=True), Console()
    names = tuple(evaluation.TABLES) if only is None else (only.value,)
    found = evaluation.run(
        data_folder(data), seed=seed, names=names, tell=lambda line: progress.print(line, highlight=False)
    )
    if output is Output.JSON:
        typer.echo(evaluation.dump(found))
    else:
        for table in evaluation.tables(found):
            console.print(table)
        for note in dict.fromkeys(note for each in found for note in each.notes):
            console.print(note, highlight=False, soft_wrap=True)
    if pictures is not None:
        for path in evaluation.pictures(found, pictures):
            progress.print(f"wrote {path}", highlight=False, soft_wrap=True)
