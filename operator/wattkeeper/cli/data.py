"""`wattkeeper data`: which public measured data is read, whether it is there and intact, and fetching it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wattkeeper.cli import own_history
from wattkeeper.cli.errors import explained
from wattkeeper.domain.data_files import DATA_VARIABLE, data_folder
from wattkeeper.domain.errors import WattkeeperError

if TYPE_CHECKING:
    from wattkeeper.energy.row_checks import RefusedRow
    from wattkeeper.evaluation.public_data import Content

_ROWS_SHOWN = 20
_Data = Annotated[Path | None, typer.Option(envvar=DATA_VARIABLE, help="Folder of public data.")]
_Names = Annotated[list[str] | None, typer.Argument(help="Names that `wattkeeper data list` prints; default: all.")]


@explained
def list_data(data: _Data = None) -> None:
    """List public data: kind, licence, where from, and whether it is in --data with the expected content."""
    from wattkeeper.evaluation import public_data

    folder = None if data is None else data_folder(data)
    for each in public_data.ALL:
        found = ""
        if folder is not None:
            verdict = each.check(folder)
            found = f"  [{verdict.state.value}{_rows(verdict.content)}]"
        how = "can be fetched" if each.downloads else "copy by hand"
        typer.echo(f"{each.name} ({each.kind}, {how}){found}\n  {each.origin}\n  {each.licence}")


@explained
def check(
    names: _Names = None,
    data: _Data = None,
    rows: Annotated[Path | None, typer.Option(help="Check your own CSV file of runs instead (docs/data.md).")] = None,
) -> None:
    """Read public data, or your own rows, and name every row that is refused: file, row, reason.

    What the loaders leave out or repair of good data is said as well. Absent data is no failure; incomplete, changed or
    broken data and refused rows are (exit code 1).
    """
    from wattkeeper.energy import own_rows
    from wattkeeper.evaluation import public_data
    from wattkeeper.traces.sources import State

    if rows is not None:
        table, refused = own_rows.scan(rows)
        for row in refused:
            typer.echo(str(row))
        good, bad = len(table), len(refused)
        typer.echo(
            f"{rows}: {good} {'row' if good == 1 else 'rows'} can be used, {bad} {'is' if bad == 1 else 'are'} refused"
        )
        if refused:
            raise typer.Exit(1)
        return
    folder, wanted, failed = data_folder(data), public_data.find(names or []), 0
    for each in wanted:
        found = each.check(folder)
        typer.echo(f"{each.name}: {found.state.value}{_rows(found.content)}")
        if found.message:
            typer.echo(f"  {found.message}")
        for row in found.content.left_out:
            typer.echo(f"  left out: {row}")
        for note in found.content.notes:
            typer.echo(f"  {note}")
        _refused(found.refused)
        failed += found.state in (State.INCOMPLETE, State.CHANGED, State.BROKEN)
    if failed:
        raise WattkeeperError(f"not as expected: {failed} of {len(wanted)} sets of data")


def _rows(content: "Content") -> str:
    return "" if content.rows is None else f", {content.rows} rows"


def _refused(rows: "Sequence[RefusedRow]") -> None:
    """All of them, unless a whole file is wrong: then the first of each reason, with its count."""
    if len(rows) <= _ROWS_SHOWN:
        for row in rows:
            typer.echo(f"  refused: {row}")
        return
    first: dict[tuple[str, str], RefusedRow] = {}
    for row in rows:
        first.setdefault((row.file, row.reason), row)
    for key, row in first.items():
        number = sum((each.file, each.reason) == key for each in rows)
        typer.echo(f"  refused: {row}" + (f" ({number} rows)" if number > 1 else ""))


@explained
def fetch(
    names: _Names = None,
    data: _Data = None,
    base_url: Annotated[
        str | None, typer.Option(help="Mirror that serves owner/repository/commit/path; default: GitHub.")
    ] = None,
) -> None:
    """Fetch public data at its pinned commit; only expected content is kept, and nothing is overwritten.

    What cannot be fetched is named with what to copy from where (exit code 1).
    """
    from wattkeeper.evaluation import fetch_data, public_data

    folder, failures = data_folder(data), 0
    for each in public_data.find(names or []):
        try:
            fetch_data.fetch(each, folder, base_url=base_url or fetch_data.RAW_FILES, report=typer.echo)
        except WattkeeperError as error:
            typer.echo(str(error), err=True)
            failures += 1
    if failures:
        raise WattkeeperError(f"sets of data that were not fetched: {failures}")


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    group = typer.Typer(no_args_is_help=True, help="Measured data: public sets, and your own.")
    group.command("list")(list_data)
    group.command("check")(check)
    group.command("fetch")(fetch)
    group.command("from-prometheus")(own_history.from_prometheus)
    app.add_typer(group, name="data")
