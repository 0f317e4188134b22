"""`wattkeeper evaluate own-history`: what rows out of a user's own Prometheus are worth."""

import json
from typing import Annotated

import typer
from rich.console import Console

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import MeasuredData, Page, PageOutput
from wattkeeper.domain.data_files import data_folder


@explained
def own_history(
    data: MeasuredData = None,
    bias: Annotated[float, typer.Option(min=0.5, max=1.15, help="Of the simulated cards' power.")] = 0.85,
    model: Annotated[str, typer.Option(help="What the twin serves.")] = "meta-llama/Llama-3.1-8B-Instruct",
    accelerator: Annotated[str, typer.Option(help="On what.")] = "h100-sxm",
    seed: Annotated[int, typer.Option(min=0, help="Of traffic, training and intervals.")] = 0,
    output: Annotated[PageOutput, typer.Option(help="Form of the result.")] = PageOutput.TABLE,
    page: Page = None,
) -> None:
    """Train with hours of a simulated service whose power no table knows, and hold later hours against the model."""
    # Imported here: the other commands shall not wait for LightGBM.
    from wattkeeper.evaluation import own_history as evaluation
    from wattkeeper.evaluation import rendering
    from wattkeeper.evaluation.simulated_history import Cards

    if page is not None:
        rendering.check_place(page, name="evaluate own-history")
    progress, console = Console(stderr=True), Console()
    found = evaluation.evaluate(
        data_folder(data),
        Cards(model=model, accelerator=accelerator, bias=bias),
        seed=seed,
        report=lambda line: progress.print(line, style="dim", markup=False, highlight=False, soft_wrap=True),
    )
    made, summary = evaluation.tables(found), evaluation.summary(found)
    if page is not None:
        rendering.fill(page, name="evaluate own-history", tables=made, intro=summary)
    match output:
        case PageOutput.JSON:
            typer.echo(json.dumps({"summary": summary, "tables": [rendering.plain(table) for table in made]}, indent=2))
        case PageOutput.MARKDOWN:
            typer.echo(summary + "\n\n" + "\n".join(rendering.markdown(table) for table in made))
        case PageOutput.TABLE:
            console.print(summary, highlight=False, soft_wrap=True)
            rendering.show(made)
