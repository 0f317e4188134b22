"""What a replay found, as part of a Markdown page."""

from collections.abc import Mapping, Sequence

from wattkeeper.replay import html, table
from wattkeeper.replay.result import ReplayReport
from wattkeeper.replay.table import Column, Row


def section(report: ReplayReport) -> str:
    """Headline, table, what must be said below it, and the parameters of each policy."""
    parts = [*html.headline(report)]
    for facts in report.traces:
        found = table.rows(report, facts.name)
        parts += [_table(table.COLUMNS, found), " ".join(table.notes(report, facts.name)[1:])]
    given = [
        f"{policy} " + ", ".join(f"{name} {value:g}" for name, value in run.parameters.items() if value is not None)
        for policy in report.policies()
        for run in report.of(policy)[:1]
        if run.parameters
    ]
    parts += [
        "Parameters: " + "; ".join(given) + ".",
        *(note for note in report.notes if note.startswith("Not played")),
    ]
    return "\n\n".join(part for part in parts if part)


def comparison(reports: Mapping[str, ReplayReport], *, policy: str) -> str:
    """One row of a policy per report, by what its command has and the others have not."""
    columns = (Column(title="command with", text=lambda row: row.policy), *table.COLUMNS[1:])
    rows: list[Row] = []
    for label, report in reports.items():
        for facts in report.traces:
            rows += [_renamed(row, label) for row in table.rows(report, facts.name) if row.policy == policy]
    return _table(columns, rows)


def _renamed(row: Row, name: str) -> Row:
    return Row(**{**row.__dict__, "policy": name})


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    head = [column.title.replace("\n", " ") for column in columns]
    lines = [head, ["---"] * len(columns), *([column.text(row) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
