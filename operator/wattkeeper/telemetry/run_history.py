"""What Prometheus remembers of single replicas: counters, gauges and GPUs of each pod on one grid of times.

Counters come as they stood at each scrape, with the time of the scrape: differences are then exact, where `rate` would
extrapolate, and a counter that falls shows a restart. Prometheus repeats a last value for minutes; the time of the
scrape tells that nothing new came. Watts, clock and use are means over the last two steps, so that they are there where
the exporter is scraped as rarely as once a step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wattkeeper.domain.errors import TelemetryError
from wattkeeper.domain.workload import FloatArray
from wattkeeper.telemetry import aliases, promql
from wattkeeper.telemetry.prometheus import PrometheusSettings
from wattkeeper.telemetry.ranges import MOST_POINTS, RangeSource, Series
from wattkeeper.telemetry.source import PodKey

Labels = Mapping[str, str]
_GAUGES = {aliases.RUNNING: "running", aliases.WAITING: "waiting", aliases.KV_USAGE: "kv_usage"}
_COUNTERS = {
    aliases.FINISHED: "finished_requests",
    aliases.PROMPT_TOKENS: "prompt_tokens",
    aliases.GENERATION_TOKENS: "generation_tokens",
    aliases.PREEMPTIONS: "preemptions",
}
_MEANS = ("kv_usage", "iteration_count")
"""Over the engines of a pod, which work side by side; all others are sums."""


@dataclass(frozen=True, kw_only=True)
class GpuHistory:
    """One card while a pod held it; (T,), NaN where nothing was measured."""

    uuid: str
    model: str | None
    """As the exporter names it."""
    watts: FloatArray
    clock_mhz: FloatArray
    limit_watts: FloatArray
    utilisation: FloatArray
    """Share of time in which a kernel ran, 0..1."""


@dataclass(frozen=True, kw_only=True)
class ReplicaHistory:
    """One pod on the grid `times_seconds` (T,) in Unix seconds."""

    namespace: str
    pod: str
    times_seconds: FloatArray
    scraped_seconds: FloatArray
    """(T,) time of the scrape that the engine's numbers are of; NaN where there is none."""
    engine: Mapping[str, FloatArray]
    """By the names of `domain.observation.EngineCounters`, (T,) each; NaN where not served."""
    model_names: tuple[str, ...] = ()
    """As the engines call what they serve."""
    engines: int = 1
    """Data-parallel ranks."""
    gpus: tuple[GpuHistory, ...] = ()
    kepler_watts: FloatArray | None = None
    """(T,) of all its GPUs together, where no exporter of the cards was found."""

    @property
    def key(self) -> PodKey:
        """(namespace, pod)."""
        return self.namespace, self.pod


@dataclass(frozen=True, kw_only=True)
class HistorySpan:
    """Which times are asked for; Unix seconds."""

    start_seconds: float
    end_seconds: float
    step_seconds: float = 30.0

    @property
    def times_seconds(self) -> FloatArray:
        """The grid (T,), ends included."""
        count = int((self.end_seconds - self.start_seconds) / self.step_seconds + 1e-6) + 1
        return self.start_seconds + self.step_seconds * np.arange(count, dtype=np.float64)


@dataclass(kw_only=True)
class _Grid:
    """Series gathered on the grid, by an identity of theirs."""

    span: HistorySpan
    found: dict[frozenset[tuple[str, str]], tuple[Labels, FloatArray]] = field(default_factory=dict)

    def add(self, answers: Iterable[list[Series]]) -> "_Grid":
        """Take in all parts of an answer."""
        size = len(self.span.times_seconds)
        for part in answers:
            for labels, points in part:
                _, values = self.found.setdefault(frozenset(labels.items()), (labels, np.full(size, np.nan)))
                at = [round((seconds - self.span.start_seconds) / self.span.step_seconds) for seconds, _ in points]
                values[at] = [value for _, value in points]
        return self

    def __iter__(self) -> Iterator[tuple[Labels, FloatArray]]:
        return iter(self.found.values())


def read(
    settings: PrometheusSettings,
    span: HistorySpan,
    *,
    pods: str = ".+",
    engine_matchers: Sequence[str] = (),
    points: int = MOST_POINTS,
) -> list[ReplicaHistory]:
    """Histories of the pods whose whole name matches the regular expression `pods`, in order of their names.

    `engine_matchers` narrow the engines' series alone (such as `model_name="m"`), the settings' own matchers all
    series. `points`: of one series in one answer.

    Raises TelemetryError: Prometheus fails, no engine or no power is known of the selection, or series name no pod.
    """
    queries = replace(settings.queries, rate_window_seconds=2.0 * span.step_seconds)
    times = span.times_seconds
    with RangeSource(settings) as source:

        def ask(query: str) -> _Grid:
            asked = source.ask(
                query,
                start_seconds=span.start_seconds,
                end_seconds=float(times[-1]),
                step_seconds=span.step_seconds,
                points=points,
            )
            return _Grid(span=span).add(asked)

        narrowed = replace(queries, matchers=(*queries.matchers, *engine_matchers))
        engines = _by_pod(ask(promql.counters_of(narrowed, pods)))
        if not engines:
            raise TelemetryError(_no_engines(settings, narrowed, pods))
        names = sorted({pod for _, pod in engines})
        gpus = {name: ask(query) for name, query in promql.gpu_history_queries(queries, names).items()}
    cards = _cards(gpus, engines)
    kepler = _by_pod(gpus["kepler_pod"])
    found = [
        _replica(key, series, times, settings.queries.prefixes, cards.get(key, ()), kepler.get(key, []))
        for key, series in sorted(engines.items())
    ]
    if not any(each.gpus or each.kepler_watts is not None for each in found):
        raise TelemetryError(_no_power(settings, names))
    return found


def _by_pod(grid: _Grid) -> dict[PodKey, list[tuple[Labels, FloatArray]]]:
    """Series by the pod that they name."""
    found: dict[PodKey, list[tuple[Labels, FloatArray]]] = {}
    for labels, values in grid:
        key = aliases.pod_key(labels)
        if key is not None:
            found.setdefault(key, []).append((labels, values))
    return found


def _replica(
    key: PodKey,
    series: Sequence[tuple[Labels, FloatArray]],
    times: FloatArray,
    prefixes: Sequence[str],
    gpus: Sequence[GpuHistory],
    kepler: Sequence[tuple[Labels, FloatArray]],
) -> ReplicaHistory:
    by_name: dict[str, list[FloatArray]] = {}
    scraped = np.full(len(times), np.nan)
    for labels, values in series:
        if labels.get(promql.PART) == promql.TIME_PART:
            scraped = np.fmin(scraped, values)
        else:
            by_name.setdefault(labels.get("__name__", ""), []).append(values)

    def of(metric: aliases.Metric, field_name: str, suffix: str = "") -> FloatArray:
        """The first of the names that is there, time by time."""
        result = np.full(len(times), np.nan)
        for name in aliases.full_names(metric, prefixes):
            if parts := by_name.get(name + suffix):
                stacked = np.vstack(parts)
                known = np.isfinite(stacked)
                total = np.where(known, stacked, 0.0).sum(axis=0)
                count = known.sum(axis=0)
                values = total / np.maximum(count, 1) if field_name in _MEANS else total
                result = np.where(np.isnan(result) & (count > 0), values, result)
        return result

    engine = {name: of(aliases.ENGINE_METRICS[metric], name) for metric, name in (_GAUGES | _COUNTERS).items()}
    cached = of(aliases.STEP_METRICS[aliases.CACHED_TOKENS], "cached_prompt_tokens")
    hits = of(aliases.ENGINE_METRICS[aliases.PREFIX_HITS], "cached_prompt_tokens")
    gaps, iterations = (aliases.STEP_METRICS[name] for name in (aliases.GAPS, aliases.ITERATION_TOKENS))
    engine |= {
        "cached_prompt_tokens": hits if np.isnan(cached).all() else cached,
        "inter_token_seconds_sum": of(gaps, "inter_token_seconds_sum", "_sum"),
        "inter_token_count": of(gaps, "inter_token_count", "_count"),
        "iteration_count": of(iterations, "iteration_count", "_count"),
    }
    served, ranks = ({labels[name] for labels, _ in series if labels.get(name)} for name in ("model_name", "engine"))
    return ReplicaHistory(
        namespace=key[0],
        pod=key[1],
        times_seconds=times,
        scraped_seconds=scraped,
        engine=engine,
        model_names=tuple(sorted(served)),
        engines=max(len(ranks), 1),
        gpus=tuple(gpus),
        kepler_watts=_greatest([values for _, values in kepler]) if kepler and not gpus else None,
    )


def _cards(gpus: Mapping[str, _Grid], pods: Iterable[PodKey]) -> dict[PodKey, list[GpuHistory]]:
    """Cards by the pod that held them.

    A slice of a card (MIG) has no power of its own, and where two pods hold one nobody knows whose the power is: both
    are left without watts.
    """
    wanted = set(pods)
    columns = {
        name: _by_card(gpus[name])
        for name in (aliases.GPU_POWER, aliases.GPU_CLOCK, aliases.GPU_LIMIT, aliases.GPU_USE)
    }
    power = columns[aliases.GPU_POWER]
    holders: dict[str, FloatArray] = {}
    for (_, uuid), (_, watts) in power.items():
        holders[uuid] = holders.get(uuid, np.zeros(len(watts))) + np.isfinite(watts)
    found: dict[PodKey, list[GpuHistory]] = {}
    for (key, uuid), (labels, watts) in sorted(power.items(), key=lambda item: item[0]):
        if key not in wanted:
            continue
        blank = np.full(len(watts), np.nan)
        sliced = aliases.label(labels, aliases.MIG_LABELS) is not None
        clock, limit, use = (
            columns[name].get((key, uuid), (labels, blank))[1]
            for name in (aliases.GPU_CLOCK, aliases.GPU_LIMIT, aliases.GPU_USE)
        )
        found.setdefault(key, []).append(
            GpuHistory(
                uuid=uuid,
                model=aliases.label(labels, aliases.MODEL_LABELS),
                watts=np.where((holders[uuid] > 1) | sliced, np.nan, watts),
                clock_mhz=clock,
                limit_watts=limit,
                utilisation=use / 100.0,
            )
        )
    return found


def _by_card(grid: _Grid) -> dict[tuple[PodKey, str], tuple[Labels, FloatArray]]:
    """One series of each pod and card, where two exporters or jobs show the same."""
    found: dict[tuple[PodKey, str], tuple[Labels, FloatArray]] = {}
    for labels, values in grid:
        key, uuid = aliases.pod_key(labels), aliases.label(labels, aliases.UUID_LABELS)
        if key is None or uuid is None:
            continue
        before = found.get((key, uuid))
        found[key, uuid] = (labels, values if before is None else np.where(np.isnan(before[1]), values, before[1]))
    return found


def _greatest(values: Sequence[FloatArray]) -> FloatArray:
    return np.asarray(np.fmax.reduce(list(values)))


def _no_engines(settings: PrometheusSettings, queries: promql.QuerySettings, pods: str) -> str:
    names = " or ".join(aliases.full_names(aliases.ENGINE_METRICS[aliases.RUNNING], queries.prefixes))
    where = f" in {', '.join(queries.namespaces)}" if queries.namespaces else ""
    narrowed = f" with {', '.join(queries.matchers)}" if queries.matchers else ""
    return (
        f"Prometheus at {settings.url} has no series {names} of pods {pods}{where}{narrowed} in this time, or they "
        "carry no pod and namespace label: check the names, how long it keeps data, and docs/metrics-read.md"
    )


def _no_power(settings: PrometheusSettings, pods: Sequence[str]) -> str:
    names = " or ".join(aliases.DCGM_METRICS[aliases.GPU_POWER].names)
    shown = ", ".join(pods[:3]) + (f" and {len(pods) - 3} more" if len(pods) > 3 else "")
    return (
        f"Prometheus at {settings.url} has the engines of {shown}, but no power of their GPUs ({names}, or "
        f"{aliases.KEPLER_POD_WATTS}): run dcgm-exporter with DCGM_EXPORTER_KUBERNETES=true, so that GPUs name their "
        "pods (docs/metrics-read.md)"
    )
