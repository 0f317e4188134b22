"""The tables of "When does WAIT pay?"."""

from collections.abc import Iterator, Sequence

from wattkeeper.evaluation import pays
from wattkeeper.evaluation.pays import LOADS, Result
from wattkeeper.evaluation.wait_paper import Estimate

_DETAILED = "near"


def ratio_tables(rows: Sequence[Result]) -> str:
    """Per lengths and memory: each policy's latency, energy and evictions at each load, over the baseline."""
    parts = []
    for part in _parts(rows):
        first = part[0]
        parts += [
            f"### {_title(first)}",
            "",
            "| policy | " + " | ".join(f"{load}, {_rate(part, load):.3g}/s" for load in LOADS) + " |",
            "|---|" + "---|" * len(LOADS),
        ]
        for policy in dict.fromkeys(row.policy for row in part):
            cells = [_ratio(row) for load in LOADS for row in part if (row.policy, row.load) == (policy, load)]
            parts.append(f"| {policy} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def detail_tables(rows: Sequence[Result]) -> str:
    """Figures of each policy near saturation."""
    columns = (
        "policy", "done/s", "TTFT s", "p95", "e2e s", "p95", "TPOT ms", "evicted %", "J/token", "busy %", "with",
    )  # fmt: skip
    parts = []
    for part in _parts(rows):
        chosen = [row for row in part if row.load == _DETAILED]
        parts += [
            f"### {_title(part[0])}, {chosen[0].rate:.3g}/s",
            "",
            "| " + " | ".join(columns) + " |",
            "|" + "---|" * len(columns),
        ]
        for row in chosen:
            tpot = None if row.tpot_seconds is None else f"{1e3 * row.tpot_seconds.mean:.0f}"
            busy = None if row.busy_percent is None else f"{row.busy_percent.mean:.0f}"
            joules = None if row.joules_per_token is None else _fine(row.joules_per_token)
            figures = (
                row.throughput, row.ttft_seconds, row.ttft_p95_seconds, row.e2e_seconds, row.e2e_p95_seconds, tpot,
                row.evictions_percent, joules, busy,
            )  # fmt: skip
            parts.append(f"| {row.policy} | " + " | ".join(str(each or "-") for each in figures) + f" | {row.note} |")
        parts.append("")
    return "\n".join(parts)


SUMMARY = ("policy", "runs on", "faster", "slower", "saves energy", "costs energy", "evicts on", "least J", "at e2e")


def summary_cells(rows: Sequence[Result]) -> list[tuple[str, ...]]:
    """One line per policy: on how many operating points it is surely better or worse than the baseline."""
    lines = []
    points = len({(row.lengths, row.tight, row.load) for row in rows})
    for policy in dict.fromkeys(row.policy for row in rows):
        ran = [row for row in rows if row.policy == policy and row.e2e_ratio is not None and row.joules_ratio]
        if policy == pays.BASELINE:
            continue
        if not ran:
            lines.append((policy, f"0 of {points}", *["-"] * (len(SUMMARY) - 2)))
            continue
        best = min(ran, key=lambda row: row.joules_ratio.mean if row.joules_ratio else 1.0)
        counts = (
            sum(_below(row.e2e_ratio) for row in ran),
            sum(_above(row.e2e_ratio) for row in ran),
            sum(_below(row.joules_ratio) for row in ran),
            sum(_above(row.joules_ratio) for row in ran),
            sum(row.evictions_percent is not None and row.evictions_percent.mean > 0.0 for row in ran),
        )
        least = f"{best.joules_ratio} ({best.lengths}, {best.load})"
        lines.append((policy, f"{len(ran)} of {points}", *map(str, counts), least, str(best.e2e_ratio)))
    return lines


def summary(rows: Sequence[Result]) -> str:
    """The same in Markdown."""
    lines = ["| " + " | ".join(SUMMARY) + " |", "|" + "---|" * len(SUMMARY)]
    return "\n".join([*lines, *("| " + " | ".join(cells) + " |" for cells in summary_cells(rows))])


def _parts(rows: Sequence[Result]) -> Iterator[list[Result]]:
    for lengths, tight in dict.fromkeys((row.lengths, row.tight) for row in rows):
        yield [row for row in rows if (row.lengths, row.tight) == (lengths, tight)]


def _title(row: Result) -> str:
    return f"{row.lengths}, {'tight' if row.tight else 'ample'} KV memory ({row.kv_tokens:,} tokens)"


def _rate(part: Sequence[Result], load: str) -> float:
    return next(row.rate for row in part if row.load == load)


def _ratio(row: Result) -> str:
    if row.e2e_ratio is None or row.joules_ratio is None or row.evictions_percent is None:
        return row.note.removeprefix("no thresholds: ")
    evicted = f", {row.evictions_percent.mean:.1f} % evicted" if row.evictions_percent.mean > 0.0 else ""
    return f"{row.e2e_ratio} / {row.joules_ratio}{evicted}"


def _fine(estimate: Estimate) -> str:
    width = "" if estimate.half_width is None else f"±{estimate.half_width:.3f}"
    return f"{estimate.mean:.3f}{width}"


_NOTICED = 0.02
"""Smaller differences count as none."""


def _below(ratio: Estimate | None) -> bool:
    return ratio is not None and ratio.mean + max(ratio.half_width or 0.0, _NOTICED) < 1.0


def _above(ratio: Estimate | None) -> bool:
    return ratio is not None and ratio.mean - max(ratio.half_width or 0.0, _NOTICED) > 1.0
