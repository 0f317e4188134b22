"""What the comparison with Vidur says, as rows of text and as plain data."""

import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattkeeper.bench.vidur import Agreement, Played, Result, Speed
from wattkeeper.domain.workload import FloatArray

GOAL_RATIO = 250.0
METRICS = ("TTFT", "TPOT", "e2e")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A table: title, note, column names and rows of text."""

    key: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def latencies(agreement: Agreement, played: Played) -> dict[str, FloatArray]:
    """TTFT, TPOT (requests of more than one output token) and end-to-end time in seconds, by `METRICS`."""
    arrival, tokens = agreement.load.arrival_seconds, agreement.load.output_tokens
    first, last = played.first_token_seconds, played.finish_seconds
    several = tokens > 1
    found = (first - arrival, (last - first)[several] / (tokens[several] - 1), last - arrival)
    return dict(zip(METRICS, found, strict=True))


def statistics_of(values: FloatArray) -> dict[str, float]:
    """Mean, median and 95th percentile."""
    return {"mean": float(values.mean()), "p50": float(np.median(values)), "p95": float(np.percentile(values, 95.0))}


def comparison(agreement: Agreement) -> dict[str, dict[str, tuple[float, float]]]:
    """(Vidur, twin) in seconds, by metric and statistic."""
    theirs, ours = latencies(agreement, agreement.vidur), latencies(agreement, agreement.twin)
    found = {}
    for metric in METRICS:
        left, right = statistics_of(theirs[metric]), statistics_of(ours[metric])
        found[metric] = {name: (left[name], right[name]) for name in left}
    return found


def largest_seconds(agreement: Agreement) -> float:
    """The largest difference of any request's first token or finish."""
    theirs, ours = agreement.vidur, agreement.twin
    return max(
        float(np.abs(theirs.first_token_seconds - ours.first_token_seconds).max()),
        float(np.abs(theirs.finish_seconds - ours.finish_seconds).max()),
    )


def tables(result: Result) -> tuple[Rows, ...]:
    """Agreement, then speed."""
    return _agreement(result), _speed(result)


def summary(result: Result) -> str:
    """Two or three sentences with the figures that count."""
    roomy = [each for each in result.agreements if not (each.vidur.evictions or each.twin.evictions)]
    tight = [each for each in result.agreements if each.vidur.evictions or each.twin.evictions]
    parts = []
    if roomy:
        worst = max(map(largest_seconds, roomy))
        parts.append(
            f"Where KV memory suffices ({len(roomy)} cases of {result.settings.requests} requests), no request's first "
            f"token or finish differs by more than {worst:.0e} s."
        )
    for mended, words in ((False, "as Vidur is"), (True, "with Vidur's restart of evicted requests put right")):
        shares = [worst_share(each) for each in tight if each.mended is mended]
        if shares:
            parts.append(
                f"Where requests are evicted, {words}, a mean, median or p95 differs by up to {max(shares):.0%}."
            )
    parts += [
        f"At {speed.rate:g} requests/s the twin is {statistics.median(speed.ratios):.0f} times as fast "
        f"(goal {GOAL_RATIO:.0f})."
        for speed in result.speeds
        if speed.what == result.speeds[0].what
    ]
    return " ".join(parts)


def to_dict(result: Result) -> dict[str, Any]:
    """For JSON."""
    return {
        "requests": result.settings.requests,
        "rounds": result.settings.rounds,
        "vidur_python": result.python,
        "stand_in_profile": result.stand_in_profile,
        "agreement": [
            {
                "requests_per_second": each.rate,
                "kv_blocks": each.kv_blocks,
                "restart_put_right": each.mended,
                "steps": each.vidur.steps,
                "evictions": {"vidur": each.vidur.evictions, "twin": each.twin.evictions},
                "largest_difference_seconds": largest_seconds(each),
                "seconds": {
                    metric: {name: {"vidur": pair[0], "twin": pair[1]} for name, pair in stats.items()}
                    for metric, stats in comparison(each).items()
                },
            }
            for each in result.agreements
        ],
        "speed": [
            {
                "requests_per_second": each.rate,
                "what": each.what,
                "vidur_cpu_seconds_per_1000": list(each.vidur_seconds),
                "twin_cpu_seconds_per_1000": list(each.twin_seconds),
                "ratios": list(each.ratios),
                "iterations_per_request": each.steps_per_request,
            }
            for each in result.speeds
        ],
    }


def worst_share(agreement: Agreement) -> float:
    """The largest relative difference of any metric's mean, p50 or p95."""
    pairs = [pair for stats in comparison(agreement).values() for pair in stats.values()]
    return max(abs(ours / theirs - 1.0) for theirs, ours in pairs)


def _agreement(result: Result) -> Rows:
    rows = []
    for each in result.agreements:
        for metric, stats in comparison(each).items():
            unit, scale = ("ms", 1e3) if metric == "TPOT" else ("s", 1.0)
            cells = [f"{scale * theirs:.3f} / {scale * ours:.3f}" for theirs, ours in stats.values()]
            worst = max(abs(ours / theirs - 1.0) for theirs, ours in stats.values())
            case = f"{each.rate:g}/s, {each.kv_blocks} blocks{', restart put right' if each.mended else ''}"
            evictions = f"{each.vidur.evictions} / {each.twin.evictions}"
            rows.append((case, f"{metric}, {unit}", *cells, f"{100 * worst:.2f} %", evictions))
    return Rows(
        key="agreement",
        title="Agreement",
        note=f"Vidur / twin, {result.settings.requests} requests a case; the largest difference of the three figures. "
        "Evictions: requests that lost their KV cache and began again.",
        columns=("case", "metric", "mean", "p50", "p95", "difference", "evictions"),
        rows=tuple(rows),
    )


def _speed(result: Result) -> Rows:
    return Rows(
        key="speed",
        title="Speed",
        note="Processor seconds per 1,000 requests, in turns in one run; median of "
        f"{result.settings.rounds} rounds, range of the ratio in brackets. The twin's metrics and power are on in "
        f"every row, with the card's own power limit. Goal: {GOAL_RATIO:.0f} times, with metrics on.",
        columns=("requests/s", "Vidur runs with", "iterations a request", "Vidur, s", "twin, ms", "ratio"),
        rows=tuple(_speed_row(each) for each in result.speeds),
    )


def _speed_row(speed: Speed) -> tuple[str, ...]:
    ratios = speed.ratios
    return (
        f"{speed.rate:g}",
        speed.what,
        f"{speed.steps_per_request:.1f}",
        f"{statistics.median(speed.vidur_seconds):.2f}",
        f"{1e3 * statistics.median(speed.twin_seconds):.1f}",
        f"{statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f})",
    )
