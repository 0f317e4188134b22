"""One table per trace: energy, savings, attainment, latencies and changes of every policy; as rows and as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattkeeper.replay import spread
from wattkeeper.replay.result import JOULES_PER_KWH, ReplayReport, Run
from wattkeeper.replay.spread import Estimate

MISSED_MARK = "!"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One policy on one trace; counts and figures are means over the seeds, shares are over all requests of all."""

    policy: str
    seeds: int
    energy_kwh: float
    saved: Estimate | None
    """Percent against the baseline; None for the baseline itself and where it was not played."""
    joules_per_token: float | None
    attainment: Estimate | None
    """Percent of all requests."""
    reached: bool
    """Whether the attainment is at or above the goal."""
    windows_below_goal: float | None
    """Percent of the 10-minute windows."""
    ttft_p95_seconds: float | None
    tpot_p95_seconds: float | None
    mean_replicas: float
    max_replicas: int
    replica_changes: float
    limit_changes: float
    rollouts: float
    lost: float
    """Requests refused, lost or unfinished."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """`title` may have two lines."""

    title: str
    text: Callable[[Row], str]


def rows(report: ReplayReport, trace: str) -> tuple[Row, ...]:
    """Of every policy that played a trace, in the order of the runs."""
    found = ((policy, report.of(policy, trace)) for policy in report.policies())
    return tuple(_row(report, policy, runs, report.of(report.baseline, trace)) for policy, runs in found if runs)


def _row(report: ReplayReport, policy: str, runs: Sequence[Run], baseline: Sequence[Run]) -> Row:
    seeds = len(runs)
    tokens = sum(run.requests.output_tokens for run in runs)
    energy = sum(run.energy.total_kwh for run in runs)
    attained = spread.attainment(runs)
    columns = [run.columns for run in runs]
    hours = sum(each.time_seconds[-1] for each in columns if each.time_seconds) / 3600.0
    return Row(
        policy=policy,
        seeds=seeds,
        energy_kwh=energy / seeds,
        saved=None if policy == report.baseline else spread.saved(runs, baseline),
        joules_per_token=energy * JOULES_PER_KWH / tokens if tokens else None,
        attainment=attained,
        reached=attained is not None and attained.value >= 100.0 * report.goals.min_attainment,
        windows_below_goal=_mean([run.windows_below_goal for run in runs], scale=100.0),
        ttft_p95_seconds=_mean([run.ttft.p95_seconds for run in runs]),
        tpot_p95_seconds=_mean([run.tpot.p95_seconds for run in runs]),
        mean_replicas=sum(run.replica_hours for run in runs) / hours if hours else 0.0,
        max_replicas=max((max(each.ready, default=0) for each in columns), default=0),
        replica_changes=sum(run.replica_changes for run in runs) / seeds,
        limit_changes=sum(run.cap_changes for run in runs) / seeds,
        rollouts=sum(run.rollouts for run in runs) / seeds,
        lost=sum(run.requests.unfinished + sum(run.requests.lost.values()) for run in runs) / seeds,
    )


def _mean(values: Sequence[float | None], *, scale: float = 1.0) -> float | None:
    known = [value for value in values if value is not None]
    return scale * sum(known) / len(known) if known else None


def _number(digits: int, value: Callable[[Row], float | None], *, scale: float = 1.0) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        found = value(row)
        return "-" if found is None else f"{scale * found:,.{digits}f}"

    return text


def _saved(row: Row) -> str:
    return "-" if row.saved is None else row.saved.text()


def _attained(row: Row) -> str:
    if row.attainment is None:
        return "-"
    return row.attainment.text(digits=2) + ("" if row.reached else f" {MISSED_MARK}")


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10.0 else f"{value:,.0f}"


COLUMNS = (
    Column(title="policy", text=lambda row: row.policy),
    Column(title="energy\nkWh", text=_number(2, lambda row: row.energy_kwh)),
    Column(title="saved\n%", text=_saved),
    Column(title="per token\nJ", text=_number(3, lambda row: row.joules_per_token)),
    Column(title="in SLO\n% of requests", text=_attained),
    Column(title="windows below\ngoal, %", text=_number(1, lambda row: row.windows_below_goal)),
    Column(title="TTFT p95\ns", text=lambda row: _seconds(row.ttft_p95_seconds)),
    Column(title="TPOT p95\nms", text=_number(1, lambda row: row.tpot_p95_seconds, scale=1000.0)),
    Column(title="replicas\nmean / max", text=lambda row: f"{row.mean_replicas:.1f} / {row.max_replicas}"),
    Column(
        title="changes: replicas /\nlimits / roll-outs",
        text=lambda row: f"{row.replica_changes:.0f} / {row.limit_changes:.0f} / {row.rollouts:.0f}",
    ),
    Column(title="lost\nrequests", text=_number(0, lambda row: row.lost)),
)


def goal_text(report: ReplayReport) -> str:
    """The SLO in words."""
    goals = report.goals
    targets = [
        *([f"first token within {goals.ttft_seconds:g} s"] if goals.ttft_seconds is not None else []),
        *([f"{1000 * goals.tpot_seconds:g} ms per output token"] if goals.tpot_seconds is not None else []),
    ]
    return f"{' and '.join(targets) or 'no latency target'}, for {100 * goals.min_attainment:g} % of all requests"


def notes(report: ReplayReport, trace: str) -> tuple[str, ...]:
    """What must be said below a table."""
    found = rows(report, trace)
    seeds = max((row.seeds for row in found), default=0)
    lines = [f"SLO: {goal_text(report)}; refused, lost and unfinished requests count as missed."]
    lines.append(f"Saved: against {report.baseline}. Means over {seeds} seed{'s' if seeds != 1 else ''}.")
    if any(row.saved is not None and row.saved.low is not None for row in found):
        lines.append(f"In brackets: {100 * spread.LEVEL:.0f} % intervals over hours or days of the trace, and seeds.")
    if any(not row.reached for row in found):
        lines.append(f"{MISSED_MARK} below the goal: its savings are no savings at equal service.")
    return tuple(lines)


def text(report: ReplayReport) -> str:
    """All tables, for a terminal or a text file."""
    parts = []
    for facts in report.traces:
        found = rows(report, facts.name)
        if not found:
            continue
        head = (
            f"{facts.name}: {facts.requests:,} requests in {facts.span_seconds / 3600:.1f} h, "
            f"{report.fleet.model} on up to {report.fleet.max_replicas} x {report.fleet.gpus_per_replica} "
            f"{report.fleet.accelerator}"
        )
        parts.append("\n".join([head, "", *_aligned(found), "", *notes(report, facts.name)]))
    return "\n\n\n".join(parts) + "\n"


def _aligned(found: Sequence[Row]) -> list[str]:
    titles = [column.title.split("\n") for column in COLUMNS]
    lines = [[title[0] for title in titles], [title[1] if len(title) > 1 else "" for title in titles]]
    cells = [[column.text(row) for column in COLUMNS] for row in found]
    widths = [max(len(line[at]) for line in (*lines, *cells)) for at in range(len(COLUMNS))]

    def line(values: Sequence[str]) -> str:
        made = [
            value.ljust(width) if at == 0 else value.rjust(width)
            for at, (value, width) in enumerate(zip(values, widths, strict=True))
        ]
        return "  ".join(made).rstrip()

    return [*map(line, lines), "-" * len(line(["-" * width for width in widths])), *map(line, cells)]
