"""The Prometheus text format of one endpoint, reduced to the series that are read.

Every scrape of every pod repeats the same few hundred series names and labels with other numbers. So the part of a
line before its value is parsed once, with prometheus_client's own parser, and remembered; after that a line costs a
dictionary look-up and a `float`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import KvCacheInfo
from wattkeeper.domain.workload import FloatArray
from wattkeeper.telemetry import aliases, assemble
from wattkeeper.telemetry.aliases import Across, Kind, Metric
from wattkeeper.telemetry.engine import Labels, Series
from wattkeeper.telemetry.promql import SUM_BUCKET

_MAX_REMEMBERED = 200_000


class ExpositionReader:
    """Reads only samples with one of the given names. Not for use by several threads at once."""

    def __init__(self, names: Iterable[str]) -> None:
        self._wanted = frozenset(names)
        self._remembered: dict[str, tuple[str, Labels] | None] = {}

    def read(self, text: str) -> Series:
        """Samples of one endpoint. Raises ValueError where the text is not of the format."""
        found: Series = {}
        remembered = self._remembered
        for line in text.split("\n"):
            end = line.rfind("}") + 1 or line.find(" ")
            if end <= 0:
                continue
            head = line[:end]
            try:
                entry = remembered[head]
            except KeyError:
                entry = self._learn(line, head)
            if entry is None:
                continue
            value = float(line[end:].split(None, 1)[0])
            if value - value == 0.0:
                found.setdefault(entry[0], []).append((entry[1], value))
        return found

    def _learn(self, line: str, head: str) -> tuple[str, Labels] | None:
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        entry = None
        if head.partition("{")[0].strip() in self._wanted:
            sample = next(iter(next(iter(text_string_to_metric_families(line + "\n"))).samples))
            entry = (sample.name, dict(sample.labels))
        self._remembered[head] = entry
        return entry


@dataclass(frozen=True, kw_only=True)
class EngineSample:
    """One pod at one moment, over all its engines. Counters stand as they are, since the start of the engine."""

    gauges: Mapping[str, float]
    """By canonical name (`aliases.RUNNING` and so on); an absent series is absent here."""
    keys: tuple[tuple[str, float | str], ...]
    """What the counters are: (canonical name, ""), and for histograms (name, upper bound) and (name, "sum")."""
    counters: FloatArray
    """Shape (len(keys),)."""
    kv_cache: KvCacheInfo | None


def wanted_names(prefixes: Iterable[str]) -> frozenset[str]:
    """Sample names of all engine metrics under all their names."""
    prefixes = tuple(prefixes)
    metrics = (*aliases.ENGINE_METRICS.values(), *aliases.STEP_METRICS.values())
    return frozenset(name for metric in metrics for name in aliases.sample_names(metric, prefixes))


def engine_sample(series: Series, prefixes: Iterable[str]) -> EngineSample:
    """The quantities of one pod, each under the first of its names that is there."""
    prefixes = tuple(prefixes)
    gauges: dict[str, float] = {}
    counters: dict[tuple[str, float | str], float] = {}
    cache: KvCacheInfo | None = None
    for canonical, metric in aliases.ENGINE_METRICS.items():
        name = _served(series, metric, prefixes)
        if name is None:
            continue
        if metric.kind is Kind.GAUGE:
            values = [value for _, value in series[name]]
            gauges[canonical] = max(values) if metric.across is Across.MAX else sum(values)
        elif metric.kind is Kind.COUNTER:
            counters[canonical, ""] = sum(value for _, value in series[name])
        elif metric.kind is Kind.INFO:
            for labels, _ in series[name]:
                cache = assemble.add_caches(cache, assemble.cache_info(labels))
        else:
            for labels, value in series[f"{name}_bucket"]:
                key = (canonical, float(labels["le"]))
                counters[key] = counters.get(key, 0.0) + value
            counters[canonical, SUM_BUCKET] = sum(value for _, value in series.get(f"{name}_sum", []))
    return EngineSample(gauges=gauges, keys=tuple(counters), counters=np.array(list(counters.values())), kv_cache=cache)


def histogram_of(name: str, values: Mapping[tuple[str, float | str], float]) -> Histogram | None:
    """The histogram `name` out of counter values (or rates) by key."""
    buckets = {bound: value for (of, bound), value in values.items() if of == name and isinstance(bound, float)}
    return assemble.histogram(buckets, values.get((name, SUM_BUCKET)))


def _served(series: Series, metric: Metric, prefixes: tuple[str, ...]) -> str | None:
    suffix = "_bucket" if metric.kind is Kind.HISTOGRAM else ""
    return next((name for name in aliases.full_names(metric, prefixes) if name + suffix in series), None)
