"""`wattkeeper reproduce`: results of papers, run here and set beside what they report."""

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from wattkeeper.cli.errors import explained

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


class Output(StrEnum):
    """Form of the result."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


@_commands.callback()
def _reproduce() -> None:
    """Run a paper's experiments beside its figures."""


@_commands.command()
@explained
def wait(
    output: Annotated[Output, typer.Option(help="Form of the result.")] = Output.TABLE,
    full: Annotated[bool, typer.Option(help="More rates, 5,000 requests and ten seeds.")] = False,
    requests: Annotated[
        int | None, typer.Option(min=40, help="Requests of a run; half as many for long answers.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each policy and rate.")] = None,
    page: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Markdown page whose part about this command is written anew."),
    ] = None,
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
        case Output.JSON:
            typer.echo(
                json.dumps({"requests": count, "seeds": runs, "rows": [dataclasses.asdict(row) for row in rows]})
            )
        case Output.MARKDOWN:
            typer.echo(_markdown(rows))
        case Output.TABLE:
            table = Table(title="arXiv 2504.11320 on the stepped A100")
            for at, column in enumerate(_COLUMNS):
                table.add_column(column, justify="left" if at in (0, 2, 11) else "right")
            for row in rows:
                table.add_row(*_cells(row))
            Console().print(table)


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
