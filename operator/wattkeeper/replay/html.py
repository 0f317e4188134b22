"""One HTML page to share: tables, pictures, how it was played and how to read it; nothing is loaded from elsewhere."""

import base64
import importlib.resources
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from wattkeeper.replay import spread, table
from wattkeeper.replay.pictures import stem
from wattkeeper.replay.result import Note, ReplayReport
from wattkeeper.replay.style import OURS, looks

_CAPTIONS = {
    "time": "Over time, first seed. Latencies are p95 of the requests that arrived in an interval; where intervals are "
    "put together, the worst of them.",
    "plane": "Energy against service. Down and to the right is worse; a policy below the dashed line misses the goal. "
    "Whiskers are intervals.",
    "latency": "Distributions over the finished requests, first seed. Requests that never finished are not in them.",
}


@dataclass(frozen=True, kw_only=True)
class Remark:
    """What happened in the runs of one policy."""

    policy: str
    text: str
    count: int


def page(report: ReplayReport, pictures: Sequence[Path]) -> str:
    """The page as text; pictures are those of `pictures.draw`, put into it."""
    template = importlib.resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["embedded"] = embedded
    return environment.from_string(template).render(
        report=report,
        columns=table.COLUMNS,
        sections=[
            (facts, rows, table.notes(report, facts.name), _pictures_of(facts.name, pictures))
            for facts in report.traces
            if (rows := table.rows(report, facts.name))
        ],
        headline=headline(report),
        goal=table.goal_text(report),
        level=f"{100 * spread.LEVEL:.0f} %",
        colours={policy: look.colour for policy, look in looks(report.policies()).items()},
        parameters=[(run.policy, run.parameters) for policy in report.policies() for run in report.of(policy)[:1]],
        repairs=_remarks(report, "repairs"),
        remarks=_remarks(report, "remarks"),
        wall_seconds=sum(run.wall_seconds for run in report.runs),
    )


def write(report: ReplayReport, *, pictures: Sequence[Path], path: Path) -> None:
    """Write the page."""
    path.write_text(page(report, pictures), encoding="utf-8")


def embedded(picture: Path) -> str:
    """A picture as a data address."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def headline(report: ReplayReport) -> tuple[str, ...]:
    """One sentence per trace: what Wattkeeper did, beside the best of the others at the goal."""
    lines = []
    for facts in report.traces:
        rows = table.rows(report, facts.name)
        ours = next((row for row in rows if row.policy == OURS and row.saved and row.attainment), None)
        if ours is None or ours.saved is None or ours.attainment is None:
            continue
        line = (
            f"{facts.name}: Wattkeeper saved {ours.saved.text()} % of the GPU energy of {report.baseline}, with "
            f"{ours.attainment.text(digits=2)} % of all requests within the SLO"
        )
        line += "" if ours.reached else ", which is below the goal"
        others = [row for row in rows if row.policy != OURS and row.reached and row.saved is not None]
        if others:
            best = min(others, key=lambda row: row.energy_kwh)
            if best.saved is not None:
                line += f"; the best other policy at the goal, {best.policy}, saved {best.saved.text()} %"
        lines.append(line + ".")
    return tuple(lines)


def _pictures_of(trace: str, pictures: Iterable[Path]) -> list[tuple[Path, str]]:
    named = {f"{stem(trace)}-{name}": caption for name, caption in _CAPTIONS.items()}
    return [(path, named[path.stem]) for path in pictures if path.stem in named]


def _remarks(report: ReplayReport, kind: str) -> list[Remark]:
    """Equal notes of a policy's runs put together."""
    counts: dict[tuple[str, str], int] = {}
    for run in report.runs:
        notes: tuple[Note, ...] = getattr(run, kind)
        for note in notes:
            counts[run.policy, note.text] = counts.get((run.policy, note.text), 0) + note.count
    return [Remark(policy=policy, text=text, count=count) for (policy, text), count in counts.items()]
