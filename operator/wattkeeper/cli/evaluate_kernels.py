"""`wattkeeper evaluate kernels`: measured watts of single kernels beside the roofline's energy shares."""

import json
from typing import Annotated

import typer
from rich.console import Console

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import MeasuredData, Output, Page
from wattkeeper.domain.data_files import data_folder


@explained
def kernels(
    data: MeasuredData = None,
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
    page: Page = None,
) -> None:
    """Hold the roofline's watts against measured kernels of H200 and B200; nothing is fitted to them."""
    from wattkeeper.evaluation import energy_scores, kernel_watts, rendering

    if page is not None:
        rendering.check_place(page, name="evaluate kernels")
    progress = Console(stderr=True)
    found = kernel_watts.held_out(data_folder(data), report=lambda line: progress.print(line, style="dim"))
    made = energy_scores.tables(found)
    if page is not None:
        rendering.fill(page, name="evaluate kernels", tables=made, intro="Written by `wattkeeper evaluate kernels`.")
    if output is Output.JSON:
        typer.echo(json.dumps(energy_scores.to_dict(found), indent=2))
        return
    rendering.show(made)
