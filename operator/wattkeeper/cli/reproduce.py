"""`wattkeeper reproduce`: results of papers, run here and set beside what they report."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from wattkeeper.cli.errors import explained
from wattkeeper.cli.result_options import Page, PageOutput
from wattkeeper.domain import data_files

if TYPE_CHECKING:
    from wattkeeper.evaluation.wait_paper import Row

_commands = typer.Typer(no_args_is_help=True, help="Run a paper's experiments beside its figures.")
_COLUMNS = (
    "workload",
    "per s",
    "policy",
    "e2e s",
    "over V1",
    "paper",
    "TTFT s",
    "TPOT ms",
    "done/s",
    "evicted %",
    "J/req",
    "with",
)


@_commands.callback()
def _reproduce() -> None:
    """Run a paper's experiments beside its figures."""


@_commands.command()
@explained
def wait(
    output: Annotated[PageOutput, typer.Option(help="Form of the result.")] = PageOutput.TABLE,
    full: Annotated[bool, typer.Option(help="More rates, 5,000 requests and ten seeds.")] = False,
    requests: Annotated[
        int | None, typer.Option(min=40, help="Requests of a run; half as many for long answers.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each policy and rate.")] = None,
    page: Page = None,
) -> None:
    """WAIT and what it is compared with (arXiv 2504.11320): latency, evictions, energy."""
    # Imported here: the other commands shall not wait for it.
    from wattkeeper.evaluation import wait_paper

    count, runs = requests or (5000 if full else 1200), seeds or (10 if full else 3)
    console = Console(stderr=True)
    with console.status("starting") as status:
        rows = wait_paper.reproduce(requests=count, seeds=runs, full=full, progress=status.update)
    if page is not None:
        from wattkeeper.evaluation import rendering

        intro = f"{count} requests per run, {runs} seeds; ± is half a 95 % interval over seeds."
        text = rendering.filled(
            page.read_text(encoding="utf-8"), name="reproduce wait", content=f"{intro}\n\n{_markdown(rows)}"
        )
        page.write_text(text, encoding="utf-8")
    match output:
        case PageOutput.JSON:
            typer.echo(
                json.dumps({"requests": count, "seeds": runs, "rows": [dataclasses.asdict(row) for row in rows]})
            )
        case PageOutput.MARKDOWN:
            typer.echo(_markdown(rows))
        case PageOutput.TABLE:
            table = Table(title="arXiv 2504.11320 on the stepped A100")
            for at, column in enumerate(_COLUMNS):
                table.add_column(column, justify="left" if at in (0, 2, 11) else "right")
            for row in rows:
                table.add_row(*_cells(row))
            Console().print(table)


@_commands.command()
@explained
def pays(
    output: Annotated[PageOutput, typer.Option(help="Form of the result.")] = PageOutput.TABLE,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar=data_files.DATA_VARIABLE, help="Folder of recorded traffic, for its lengths. Left out: drawn alike."
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=40, help="Requests of a run.")] = 1000,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each policy and operating point.")] = 4,
    processes: Annotated[int, typer.Option(min=1, help="Processes that simulate.")] = 1,
    page: Page = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder to write pictures into.")] = None,
) -> None:
    """When does WAIT pay? Latency, evictions and energy of scheduling policies over lengths, loads, budgets, memory."""
    # Imported here: the other commands shall not wait for them.
    from wattkeeper.evaluation import pays as evaluation
    from wattkeeper.evaluation import pays_page, rendering

    kinds = evaluation.workloads(None if data is None else data_files.data_folder(data))
    points = evaluation.cells(kinds, replica=evaluation.Replica.of_twin(), requests=requests, seeds=seeds)
    with _progress() as progress:
        task = progress.add_task("operating points", total=len(points))
        rows = evaluation.measure(points, processes=processes, done=lambda count: progress.advance(task, count))
    left_out = "".join(
        f" Of {each.name}, {each.left_out} prompts over {evaluation.LONGEST_PROMPT:,} tokens are left out."
        for each in kinds
        if each.left_out
    )
    intro = f"{requests} requests per run, {seeds} seeds; ± is half a 95 % interval over seeds.{left_out}"
    sections = {
        "summary": f"{intro}\n\n{pays_page.summary(rows)}",
        "ratios": pays_page.ratio_tables(rows),
        "figures": pays_page.detail_tables(rows),
    }
    if page is not None:
        text = page.read_text(encoding="utf-8")
        for name, content in sections.items():
            text = rendering.filled(text, name=f"reproduce pays: {name}", content=content)
        page.write_text(text, encoding="utf-8")
    if pictures is not None:
        from wattkeeper.evaluation import pays_pictures

        pays_pictures.draw(rows, pictures)
    if output is PageOutput.JSON:
        typer.echo(
            json.dumps({"requests": requests, "seeds": seeds, "rows": [dataclasses.asdict(row) for row in rows]})
        )
    elif output is PageOutput.MARKDOWN:
        typer.echo("\n\n".join(sections.values()))
    else:
        table = Table(title=f"points where a policy differs surely from {evaluation.BASELINE}", caption=intro)
        for at, column in enumerate(pays_page.SUMMARY):
            table.add_column(column, justify="left" if at == 0 else "right")
        for cells in pays_page.summary_cells(rows):
            table.add_row(*cells)
        Console().print(table)


def _progress() -> Progress:
    """On stderr, gone once it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _cells(row: "Row") -> tuple[str, ...]:
    tpot = row.tpot_seconds
    figures = (row.throughput, row.evictions_percent, row.joules)
    return (
        row.workload,
        f"{row.rate:g}",
        row.policy,
        str(row.e2e_seconds or "-"),
        str(row.e2e_ratio or "-"),
        row.reported or "-",
        str(row.ttft_seconds or "-"),
        "-" if tpot is None else f"{1e3 * tpot.mean:.0f}",
        *(str(figure or "-") for figure in figures),
        row.note,
    )


def _markdown(rows: "list[Row]") -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines)


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.add_typer(_commands, name="reproduce")
