"""Tables of figures for people, for pages and for machines."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import console as rich_console
from rich import table as rich_table

from wattkeeper.domain import whole_file
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.evaluation.score import Spread, Verdicts

Cell = str | int | float | Spread | Verdicts | None
_LARGE = 999.0
_UNFOLDED = 1000
"""Characters: wider than any table."""


class PageError(WattkeeperError):
    """The page to be filled in has no place for the tables."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under a title; `key` names it for machines."""

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def text(cell: Cell) -> str:
    """A cell as people read it."""
    match cell:
        case None:
            return "-"
        case Spread():
            return f"{_figure(cell.median)} / {_figure(cell.p90)}"
        case Verdicts(false_met=met, false_missed=missed, edge=edge):
            return f"{_figure(met.percent)} / {_figure(missed.percent)} ({_figure(edge.percent)})"
        case float():
            return f"{cell:.2f}"
        case _:
            return str(cell)


def _figure(value: float) -> str:
    if value > _LARGE:
        return f">{_LARGE:.0f}"
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def rich(table: Table) -> rich_table.Table:
    """For a terminal."""
    made = rich_table.Table(title=table.title, caption=table.note)
    for at, column in enumerate(table.columns):
        made.add_column(column, justify="left" if at == 0 else "right")
    for row in table.rows:
        made.add_row(*map(text, row))
    return made


def show(tables: Sequence[Table]) -> None:
    """Print tables: into a file or pipe as wide as they are, and row by row where a terminal is too narrow."""
    console = rich_console.Console()
    for table in tables:
        drawn = rich(table)
        unfolded = console.measure(drawn, options=console.options.update(max_width=_UNFOLDED)).maximum
        if unfolded <= console.width:
            console.print(drawn)
        elif console.is_terminal:
            console.print(row_by_row(table), highlight=False)
        else:
            rich_console.Console(width=unfolded).print(drawn)


def row_by_row(table: Table) -> str:
    """For a narrow terminal: a line for each cell, below the first cell of its row."""
    widest = max(map(len, table.columns))
    lines = [table.title, table.note]
    for row in table.rows:
        lines.append(text(row[0]))
        lines += [f"  {name:{widest}}  {text(cell)}" for name, cell in zip(table.columns[1:], row[1:], strict=True)]
    return "\n".join([*lines, ""])


def markdown(table: Table, *, level: int = 2) -> str:
    """A section with heading, note and table."""
    lines = [
        f"{'#' * level} {table.title}",
        "",
        table.note,
        "",
        "| " + " | ".join(table.columns) + " |",
        "|" + "---|" * len(table.columns),
        *("| " + " | ".join(map(text, row)) + " |" for row in table.rows),
        "",
    ]
    return "\n".join(lines)


def plain(table: Table) -> dict[str, Any]:
    """For JSON, with intervals and counts."""
    return {
        "key": table.key,
        "title": table.title,
        "note": table.note,
        "columns": list(table.columns),
        "rows": [[dataclasses.asdict(cell) if dataclasses.is_dataclass(cell) else cell for cell in row]
                 for row in table.rows],
    }  # fmt: skip


def filled(page: str, *, name: str, content: str) -> str:
    """The page with `content` between the comments `<!-- name -->` and `<!-- /name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise PageError(f"the page has no lines {begin} and {end} to write the tables between")
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"


def check_place(path: Path, *, name: str) -> None:
    """PageError where a page has no place for the tables of `name`; asked before minutes are spent on them."""
    filled(path.read_text(encoding="utf-8"), name=name, content="")


def fill(path: Path, *, name: str, tables: Sequence[Table], intro: str) -> None:
    """Write tables into a page. PageError where it has no place for them."""
    content = intro + "\n\n" + "\n".join(markdown(table) for table in tables)
    whole_file.write(path, filled(path.read_text(encoding="utf-8"), name=name, content=content).encode())
