"""The table of a replay: one row per policy, savings with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from scipy import stats

from wattkeeper.replay.result import Report, Run

BASELINE = "static-peak"
_BOOTSTRAPS = 1000
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean with a 95 % interval; nan bounds where nothing tells the spread."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One policy, over its seeds."""

    policy: str
    kwh: float
    parked_kwh: float
    saved: Estimate | None
    """Share of the baseline's energy of held GPUs; None without a baseline."""
    saved_powered: Estimate | None
    """The same where GPUs that nobody holds stay powered."""
    joules_per_token: float
    attainment: Estimate
    meets: bool
    """Attainment at or above the goal."""
    bad_windows: float
    ttft_p95_seconds: float
    tpot_p95_seconds: float
    mean_replicas: float
    most_replicas: int
    scale_changes: float
    power_changes: float
    rollouts: float


def rows(report: Report) -> list[Row]:
    """In the order of the policies."""
    baseline = report.of(BASELINE)
    return [_row(report, report.of(policy), baseline) for policy in report.policies()]


def _row(report: Report, runs: Sequence[Run], baseline: Sequence[Run]) -> Row:
    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    attainment = _over_seeds([run.requests.attainment for run in runs])
    if len(runs) == 1:
        attainment = _blocks_ratio(runs[0].hourly_met, runs[0].hourly_arrived, attainment.value)
    saved = powered = None
    if baseline:
        pairs = list(zip(runs, baseline, strict=False))
        saved = _over_seeds([1.0 - run.energy.total / base.energy.total for run, base in pairs])
        powered = _over_seeds(
            [
                1.0 - (run.energy.total + run.energy.parked) / (base.energy.total + base.energy.parked)
                for run, base in pairs
            ]
        )
        if len(runs) == 1:
            ratio = _blocks_ratio(runs[0].hourly_joules, baseline[0].hourly_joules, 1.0 - saved.value)
            saved = Estimate(value=saved.value, low=1.0 - ratio.high, high=1.0 - ratio.low)
    return Row(
        policy=runs[0].policy,
        kwh=mean([run.energy.total for run in runs]) / _JOULES_PER_KWH,
        parked_kwh=mean([run.energy.parked for run in runs]) / _JOULES_PER_KWH,
        saved=saved,
        saved_powered=powered,
        joules_per_token=mean([run.joules_per_token for run in runs]),
        attainment=attainment,
        meets=attainment.value >= report.goal,
        bad_windows=mean([run.bad_windows for run in runs]),
        ttft_p95_seconds=mean([run.ttft(0.95) for run in runs]),
        tpot_p95_seconds=mean([run.tpot(0.95) for run in runs]),
        mean_replicas=mean([run.mean_replicas for run in runs]),
        most_replicas=max(run.most_replicas for run in runs),
        scale_changes=mean([run.scale_changes for run in runs]),
        power_changes=mean([run.power_changes for run in runs]),
        rollouts=mean([run.rollouts for run in runs]),
    )


def best_rival(report: Report, planners: Sequence[str]) -> Row | None:
    """The policy of least energy that meets the goal and is none of `planners`; None where none does."""
    good = [row for row in rows(report) if row.meets and row.policy not in planners]
    return min(good, key=lambda row: row.kwh, default=None)


def _over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval; no interval for one value."""
    value = float(np.mean(values))
    if len(values) < 2:
        return Estimate(value=value, low=math.nan, high=math.nan)
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(value=value, low=value - half, high=value + half)


def _blocks_ratio(over: Sequence[float], under: Sequence[float], value: float) -> Estimate:
    """A ratio of sums over hours, with the interval of a bootstrap over hours; none for fewer than six hours."""
    count = len(over)
    if count < 6:
        return Estimate(value=value, low=math.nan, high=math.nan)
    chosen = np.random.default_rng(5).integers(count, size=(_BOOTSTRAPS, count))
    above, below = np.asarray(over)[chosen].sum(axis=1), np.asarray(under)[chosen].sum(axis=1)
    ratios = above[below > 0] / below[below > 0]
    low, high = np.percentile(ratios, (2.5, 97.5)).tolist()
    return Estimate(value=value, low=low, high=high)


def percent(found: Estimate | None, *, digits: int = 1) -> str:
    """Such as `12.3 % (11.0 to 13.5)`."""
    if found is None:
        return "-"
    text = f"{100.0 * found.value:.{digits}f} %"
    if math.isnan(found.low):
        return text
    return f"{text} ({100.0 * found.low:.{digits}f} to {100.0 * found.high:.{digits}f})"


HEADINGS = (
    "policy", "kWh", "saved", "saved, freed GPUs on", "J/token", "in SLO", "bad windows", "TTFT p95", "TPOT p95",
    "replicas", "moves",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """One row as text."""
    return (
        row.policy,
        f"{row.kwh:.2f}",
        percent(row.saved),
        percent(row.saved_powered),
        f"{row.joules_per_token:.3f}",
        percent(row.attainment, digits=2) + ("" if row.meets else " !"),
        f"{100.0 * row.bad_windows:.0f} %",
        f"{1000.0 * row.ttft_p95_seconds:.0f} ms",
        f"{1000.0 * row.tpot_p95_seconds:.1f} ms",
        f"{row.mean_replicas:.1f}, most {row.most_replicas}",
        f"{row.scale_changes:.0f} scale, {row.power_changes:.0f} power, {row.rollouts:.0f} roll-outs",
    )


def table(report: Report) -> Table:
    """For a terminal."""
    found = Table(title=report.title)
    for heading in HEADINGS:
        found.add_column(heading, justify="left" if heading in ("policy", "moves") else "right")
    for row in rows(report):
        found.add_row(*cells(row))
    return found


def markdown(report: Report) -> str:
    """For a page."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows(report)]
    return "\n".join(lines) + "\n"


def remarks(report: Report, planners: Sequence[str]) -> list[str]:
    """What the table does not say, one line each."""
    lines = []
    seeds = len({run.seed for run in report.runs})
    spread = "Student's t over seeds" if seeds > 1 else "a bootstrap over hours (one seed)"
    lines.append(
        f"Saved against {BASELINE}; 95 % intervals from {spread}. `!`: below the goal of {100.0 * report.goal:g} %."
    )
    best = best_rival(report, planners)
    by_name = {row.policy: row for row in rows(report)}
    for name in planners:
        row = by_name.get(name)
        if row is None:
            continue
        if best is None:
            lines.append(f"No rival meets the goal; {name} {'does' if row.meets else 'does not either'}.")
        else:
            more = 100.0 * (row.kwh / best.kwh - 1.0)
            lines.append(
                f"{name} used {abs(more):.1f} % {'more' if more > 0 else 'less'} energy than the best rival that meets "
                f"the goal, {best.policy}{'' if row.meets else ', but does not meet it itself'}."
            )
    lines.append(f"Tuned on {report.tuned_on}; tested on other traffic.")
    for each in report.tunings:
        chosen = ", ".join(f"{key} {value:g}" for key, value in each.parameters.items())
        missed = "" if each.met else "; none of them met the goal there, this came closest"
        lines.append(f"{each.policy}: {chosen} (of {each.tried} tried{missed})")
    for run in report.runs:
        for what, count in run.repairs.items():
            lines.append(f"{run.policy}, seed {run.seed}: {count} x {what}")
        for reason, count in run.requests.lost.items():
            lines.append(f"{run.policy}, seed {run.seed}: {count} requests lost ({reason})")
        if run.requests.unfinished:
            lines.append(f"{run.policy}, seed {run.seed}: {run.requests.unfinished} requests never finished")
    notes = dict.fromkeys(f"{run.policy}: {note}" for run in report.runs for note in run.notes)
    return [*lines, *notes, *report.warnings]
