"""A service's own history, straight from its Prometheus: range queries to windows of rates and lengths.

Rates are those of finished requests, so arrivals are seen as late as requests take; over windows of minutes that hardly
matters. `rate` in Prometheus handles counters that begin anew; restarts are counted and kept. Values that are NaN or
infinite are left out, and a window without a rate is a gap.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from wattkeeper.domain.errors import TelemetryError
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.telemetry import aliases, promql
from wattkeeper.telemetry.lengths import LengthsProblem, length_distribution
from wattkeeper.telemetry.prometheus import PrometheusSettings
from wattkeeper.telemetry.ranges import MOST_POINTS, RangeSource, Series
from wattkeeper.traces.history import History, Window

COUNT_SECONDS = 60.0
"""Requests are counted over so long to tell how bursty a window is; at least one scrape, better two, lie within."""
LEAST_COUNTS = 4
_Numbers = dict[int, float]


def record(
    settings: PrometheusSettings,
    *,
    end_seconds: float,
    days: float,
    longest_tokens: int | None = None,
    points: int = MOST_POINTS,
) -> History:
    """The last `days` before `end_seconds` (Unix), in windows of the settings' rate window.

    `longest_tokens`: no request is longer (vLLM's max_model_len). `points`: windows asked for at a time.

    Raises TelemetryError: Prometheus fails, or it knows no requests of the selection.
    """
    window = float(int(settings.queries.rate_window_seconds))
    count = int(days * 86400.0 / window)
    if count < 2:
        raise TelemetryError(f"{days:g} days hold fewer than two windows of {window:g} s: ask for more days")
    end = end_seconds // window * window
    start = end - count * window
    queries = promql.history_queries(settings.queries)
    with RangeSource(settings) as source:

        def numbers(name: str) -> _Numbers:
            found: _Numbers = {}
            for series in _asked(source, queries[name], start, end, window, points):
                for _, values in series:
                    found |= {_index(at, start, window): max(0.0, value) for at, value in values}
            return found

        def lengths(name: str) -> dict[int, LengthDistribution]:
            made: dict[int, LengthDistribution] = {}
            for series in _asked(source, queries[name], start, end, window, points):
                buckets: dict[int, dict[str, float]] = defaultdict(dict)
                for labels, values in series:
                    for at, value in values:
                        buckets[_index(at, start, window)][labels.get("le", "")] = max(0.0, value)
                for index, by_bound in buckets.items():
                    found = _distribution(by_bound, longest_tokens)
                    if found is not None:
                        made[index] = found
            return made

        rates = numbers(aliases.FINISHED)
        if not rates:
            raise TelemetryError(
                f"Prometheus at {settings.url} knows no finished requests of this selection in {days:g} days: check "
                "--namespace, --selector, and how long it keeps data"
            )
        hits, asked, restarts = (numbers(name) for name in (aliases.PREFIX_HITS, aliases.PREFIX_QUERIES, "restarts"))
        prompts, outputs = lengths(aliases.PROMPT_LENGTH), lengths(aliases.OUTPUT_LENGTH)
        dispersions = _dispersions(source, queries["counted"], start, count, window, points)
    windows = tuple(
        Window(
            requests_per_second=rates.get(index),
            prompt=prompts.get(index),
            output=outputs.get(index),
            prefix_hit_ratio=min(hits.get(index, 0.0) / asked[index], 1.0) if asked.get(index, 0.0) > 0 else None,
            restarts=restarts.get(index, 0.0),
            # Where a counter began anew, counts of short times are not known.
            dispersion=None if restarts.get(index, 0.0) else dispersions.get(index),
        )
        for index in range(count)
    )
    return History(source=f"Prometheus at {settings.url}", start_seconds=start, window_seconds=window, windows=windows)


def _dispersions(
    source: RangeSource, query: str, start: float, count: int, window: float, points: int
) -> dict[int, float]:
    """Index of dispersion (variance over mean) of requests per COUNT_SECONDS, for each window that allows to tell."""
    number = int(window // COUNT_SECONDS)
    if number < LEAST_COUNTS:
        return {}
    step = window / number
    counter = np.full(count * number + 1, np.nan)
    end = start + count * window
    for part in source.ask(query, start_seconds=start, end_seconds=end, step_seconds=step, points=points):
        for _, values in part:
            for at, value in values:
                counter[round((at - start) / step)] = value
    counts = np.diff(counter).reshape(count, number)
    means = counts.mean(axis=1)
    # A sum of counters that falls has lost a pod; nan is a gap.
    known = (means > 0) & (counts >= 0).all(axis=1)
    return {int(index): float(counts[index].var(ddof=1) / means[index]) for index in np.flatnonzero(known)}


def _asked(
    source: RangeSource, query: str, start: float, end: float, window: float, points: int
) -> Iterator[list[Series]]:
    # A rate at a time is the mean of the window that ends there.
    return source.ask(query, start_seconds=start + window, end_seconds=end, step_seconds=window, points=points)


def _index(at_seconds: float, start: float, window: float) -> int:
    return round((at_seconds - start) / window) - 1


def _distribution(by_bound: dict[str, float], longest_tokens: int | None) -> LengthDistribution | None:
    """Of one window; None where nothing usable was recorded."""
    total = by_bound.pop(promql.SUM_BUCKET, 0.0)
    try:
        bounds = sorted((float(bound), rate) for bound, rate in by_bound.items())
        histogram = Histogram(
            upper_bounds=tuple(bound for bound, _ in bounds), cumulative=tuple(rate for _, rate in bounds), total=total
        )
    except ValueError:
        return None
    found = length_distribution(histogram, longest_tokens=longest_tokens)
    return None if isinstance(found, LengthsProblem) else found
