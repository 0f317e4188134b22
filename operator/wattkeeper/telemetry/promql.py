"""PromQL text: one query per quantity for all pods of all namespaces.

Shape of every engine query, inside out: a selector; `rate` or `delta` over the window where it is a counter; `max by`
pod and engine, which makes one series of a pod that two jobs (or two Prometheus replicas) scrape; `sum by` pod over the
engines of a pod; `or on` pod over the older names, so that a pod is read under the first name that it serves.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.aliases import Metric

SUM_BUCKET = "sum"
"""Value of `le` under which a histogram query also returns the sum of the observations."""

PART = "part"
"""Label under which the query of counters returns the time of the scrape."""
TIME_PART = "time"

_PREFIX = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_MATCHER = re.compile(r'[a-zA-Z_][a-zA-Z0-9_]*\s*(=|!=|=~|!~)\s*"(?:[^"\\]|\\.)*"')

_BY_POD = ", ".join((*aliases.POD_LABELS, *aliases.NAMESPACE_LABELS))
_BY_GPU = ", ".join(
    (
        *aliases.POD_LABELS,
        *aliases.NAMESPACE_LABELS,
        *aliases.UUID_LABELS,
        *aliases.NODE_LABELS,
        *aliases.MODEL_LABELS,
        *aliases.MIG_LABELS,
    )
)


@dataclass(frozen=True, kw_only=True)
class QuerySettings:
    """What the queries depend on. `matchers` (such as `cluster="east"`) go into every selector."""

    rate_window_seconds: float = 60.0
    length_window_seconds: float = 300.0
    prefixes: tuple[str, ...] = aliases.DEFAULT_PREFIXES
    namespaces: tuple[str, ...] = ()
    """Read only these namespaces; empty: all."""
    matchers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate_window_seconds < 1 or self.length_window_seconds < 1:
            raise ValueError("rate windows must be at least one second")
        for prefix in self.prefixes:
            if not _PREFIX.fullmatch(prefix):
                raise ValueError(f"{prefix!r} cannot begin a metric name; an example of a prefix is 'vllm:'")
        for matcher in self.matchers:
            if not _MATCHER.fullmatch(matcher):
                raise ValueError(f'{matcher!r} is no label matcher; an example is cluster="east"')


def engine_queries(settings: QuerySettings) -> dict[str, str]:
    """Queries over the engines' own metrics, by the name under which `telemetry.prometheus` reads the answer."""
    window = _duration(settings.rate_window_seconds)
    lengths = _duration(settings.length_window_seconds)
    queries: dict[str, str] = {"age": _age(settings)}
    for name in (aliases.RUNNING, aliases.WAITING, aliases.KV_USAGE):
        queries[name] = _chain(settings, name, "{}")
    for name in (
        aliases.FINISHED,
        aliases.PROMPT_TOKENS,
        aliases.GENERATION_TOKENS,
        aliases.PREEMPTIONS,
        aliases.PREFIX_QUERIES,
        aliases.PREFIX_HITS,
    ):
        queries[name] = _chain(settings, name, f"rate({{}}[{window}])")
    queries["finished_total"] = _chain(settings, aliases.FINISHED, "{}")
    running, waiting = (_chain(settings, name, f"delta({{}}[{window}])") for name in (aliases.RUNNING, aliases.WAITING))
    queries["growth"] = f"(({running}) + ({waiting})) / {settings.rate_window_seconds:g}"
    for name in (aliases.TTFT, aliases.TPOT):
        queries[name] = _histogram(settings, name, window)
    for name in (aliases.PROMPT_LENGTH, aliases.OUTPUT_LENGTH):
        queries[name] = _histogram(settings, name, lengths)
    queries[aliases.CACHE_INFO] = _info(settings, aliases.CACHE_INFO)
    queries["counters"] = _counters(settings)
    return queries


def gpu_queries(settings: QuerySettings) -> dict[str, str]:
    """Queries over GPU exporters. Power is averaged over the rate window, to match the token rates."""
    window = _duration(settings.rate_window_seconds)
    selected = {
        name: [_select(full, settings.matchers) for full in metric.names]
        for name, metric in aliases.DCGM_METRICS.items()
    }
    pod_watts = _select(aliases.KEPLER_POD_WATTS, (*settings.matchers, 'state!="terminated"'))
    container_joules = _select(aliases.KEPLER_CONTAINER_JOULES, (*settings.matchers, 'pod_name!=""'))
    parts = f"{_BY_POD}, gpu, state, mode, container_name, node_name"
    return {
        aliases.GPU_POWER: _gpu_chain([f"avg_over_time({part}[{window}])" for part in selected[aliases.GPU_POWER]]),
        "gpu_age": _gpu_chain([f"timestamp({part})" for part in selected[aliases.GPU_POWER]]),
        aliases.GPU_CLOCK: _gpu_chain([f"avg_over_time({part}[{window}])" for part in selected[aliases.GPU_CLOCK]]),
        aliases.GPU_LIMIT: _gpu_chain(selected[aliases.GPU_LIMIT]),
        aliases.GPU_USE: _gpu_chain([f"avg_over_time({part}[{window}])" for part in selected[aliases.GPU_USE]]),
        aliases.GPU_TEMPERATURE: _gpu_chain(selected[aliases.GPU_TEMPERATURE]),
        "kepler_node": (
            f"max by ({_BY_GPU}) (avg_over_time({_select(aliases.KEPLER_NODE_WATTS, settings.matchers)}[{window}]))"
        ),
        "kepler_pod": (
            f"sum by ({_BY_POD}) (max by ({parts}) (avg_over_time({pod_watts}[{window}])))"
            f" or on ({_BY_POD}) sum by ({_BY_POD}) (max by ({parts}) (rate({container_joules}[{window}])))"
        ),
    }


def counters_of(settings: QuerySettings, pods: str) -> str:
    """The query of counters and times of scrapes, of the pods whose whole name matches the regular expression."""
    return " or ".join(_counters(named) for named in _named(settings, pods))


def gpu_history_queries(settings: QuerySettings, pods: Sequence[str]) -> dict[str, str]:
    """Queries over the GPUs of these pods for ranges: means over the rate window, the limit as it stood."""
    every = [gpu_queries(named) for named in _named(settings, _either(pods))]
    return {
        name: " or ".join(each[name] for each in every)
        for name in (aliases.GPU_POWER, aliases.GPU_CLOCK, aliases.GPU_LIMIT, aliases.GPU_USE, "kepler_pod")
    }


def _named(settings: QuerySettings, pods: str) -> list[QuerySettings]:
    """The settings narrowed to pods, once for each label that may name a pod."""
    quoted = pods.replace("\\", "\\\\").replace('"', '\\"')
    return [replace(settings, matchers=(*settings.matchers, f'{label}=~"{quoted}"')) for label in aliases.POD_LABELS]


def _gpu_chain(parts: Sequence[str]) -> str:
    return f" or on ({', '.join(aliases.UUID_LABELS)}) ".join(f"max by ({_BY_GPU}) ({part})" for part in parts)


def _either(names: Sequence[str]) -> str:
    return "|".join(re.escape(name) for name in names)


def _engine_selectors(settings: QuerySettings, metric: Metric, suffix: str = "") -> list[str]:
    matchers = _restrictions(settings)
    return [_select(name + suffix, matchers) for name in aliases.full_names(metric, settings.prefixes)]


def _restrictions(settings: QuerySettings) -> tuple[str, ...]:
    """What narrows every selector."""
    if not settings.namespaces:
        return settings.matchers
    either = _either(settings.namespaces).replace("\\", "\\\\")
    return (*settings.matchers, f'namespace=~"{either}"')


def _chain(settings: QuerySettings, name: str, function: str) -> str:
    """One number per pod: the engines' values after `function`, under the first name that the pod serves."""
    metric = aliases.ENGINE_METRICS[name]
    inner = ", ".join((_BY_POD, *aliases.ENGINE_LABELS, *metric.split_labels))
    return f" or on ({_BY_POD}) ".join(
        f"{metric.across.value} by ({_BY_POD}) (max by ({inner}) ({function.format(selector)}))"
        for selector in _engine_selectors(settings, metric)
    )


def _age(settings: QuerySettings) -> str:
    """Time of the latest sample, in Unix seconds: of the engine that is furthest behind, by the job that is ahead."""
    metric = aliases.ENGINE_METRICS[aliases.RUNNING]
    inner = ", ".join((_BY_POD, *aliases.ENGINE_LABELS))
    return f" or on ({_BY_POD}) ".join(
        f"min by ({_BY_POD}) (max by ({inner}) (timestamp({selector})))"
        for selector in _engine_selectors(settings, metric)
    )


def _histogram(settings: QuerySettings, name: str, window: str) -> str:
    """Rates of all buckets and, under le="sum", of the sum."""
    metric = aliases.ENGINE_METRICS[name]
    inner = ", ".join((_BY_POD, *aliases.ENGINE_LABELS))
    alternatives = [
        f"(sum by ({_BY_POD}, le) (max by ({inner}, le) (rate({bucket}[{window}])))"
        f" or label_replace(sum by ({_BY_POD}) (max by ({inner}) (rate({total}[{window}]))),"
        f' "le", "{SUM_BUCKET}", "", ""))'
        for bucket, total in zip(
            _engine_selectors(settings, metric, "_bucket"), _engine_selectors(settings, metric, "_sum"), strict=True
        )
    ]
    return f" or on ({_BY_POD}) ".join(alternatives)


def _info(settings: QuerySettings, name: str) -> str:
    metric = aliases.ENGINE_METRICS[name]
    inner = ", ".join((_BY_POD, "engine", *metric.split_labels))
    return f" or on ({_BY_POD}) ".join(
        f"max by ({inner}) ({selector})" for selector in _engine_selectors(settings, metric)
    )


def _counters(settings: QuerySettings) -> str:
    """Counters and gauges as they stand, with their names, and the time of the scrape; asked for in one query.

    Queries of one collection are evaluated one after the other, and a scrape in between would make numbers of two
    scrapes look like those of one.
    """
    metrics = (*(aliases.ENGINE_METRICS[name] for name in aliases.COUNTED), *aliases.STEP_METRICS.values())
    names = "|".join(dict.fromkeys(name for metric in metrics for name in aliases.sample_names(metric, ("",))))
    prefixes = "|".join(settings.prefixes)
    splits = dict.fromkeys(label for metric in metrics for label in metric.split_labels)
    inner = ", ".join((_BY_POD, *aliases.ENGINE_LABELS, *splits, "__name__"))
    selector = _select("", (f'__name__=~"({prefixes})({names})"', *_restrictions(settings)))
    return f'max by ({inner}) ({selector}) or label_replace({_age(settings)}, "{PART}", "{TIME_PART}", "", "")'


def _select(name: str, matchers: Sequence[str]) -> str:
    return f"{name}{{{', '.join(matchers)}}}" if matchers else name


def _duration(seconds: float) -> str:
    return f"{math.ceil(seconds)}s"


def history_queries(settings: QuerySettings) -> dict[str, str]:
    """Queries for ranges: mean rates over `rate_window_seconds`, summed over all pods; `rate` sees counter resets.

    Lengths are rates per bucket with the sum under le="sum"; "restarts" counts resets of the request counter,
    "counted" is the counter itself, for the counts of short times.
    """
    window = _duration(settings.rate_window_seconds)
    queries = {
        name: f"sum({_chain(settings, name, f'rate({{}}[{window}])')})"
        for name in (aliases.FINISHED, aliases.PREFIX_QUERIES, aliases.PREFIX_HITS)
    }
    queries["counted"] = f"sum({_chain(settings, aliases.FINISHED, '{}')})"
    queries["restarts"] = f"sum({_chain(settings, aliases.FINISHED, f'resets({{}}[{window}])')})"
    for name in (aliases.PROMPT_LENGTH, aliases.OUTPUT_LENGTH):
        queries[name] = f"sum by (le) ({_histogram(settings, name, window)})"
    return queries
