"""What the engines of one pod counted, out of the samples of one scrape, under whatever names this version serves."""

from collections.abc import Mapping, Sequence

from wattkeeper.domain.observation import EngineCounters
from wattkeeper.telemetry import aliases

Labels = Mapping[str, str]
Series = dict[str, list[tuple[Labels, float]]]
"""Finite samples by sample name, each with its labels."""


def engine_counters(series: Series, prefixes: Sequence[str], *, time_seconds: float) -> EngineCounters | None:
    """Sums over the engines of a pod (steps and KV usage: means); None where nothing of it is served."""
    found = {name: _values(series, aliases.ENGINE_METRICS[name].names, prefixes) for name in aliases.COUNTED}
    iteration, token, cached = (
        aliases.STEP_METRICS[name].names for name in (aliases.ITERATION_TOKENS, aliases.GAPS, aliases.CACHED_TOKENS)
    )
    if not any(found.values()):
        return None
    return EngineCounters(
        time_seconds=time_seconds,
        running=_sum(found[aliases.RUNNING]),
        waiting=_sum(found[aliases.WAITING]),
        kv_usage=_mean(found[aliases.KV_USAGE]),
        finished_requests=_sum(found[aliases.FINISHED]),
        prompt_tokens=_sum(found[aliases.PROMPT_TOKENS]),
        cached_prompt_tokens=_sum(_values(series, cached, prefixes) or found[aliases.PREFIX_HITS]),
        generation_tokens=_sum(found[aliases.GENERATION_TOKENS]),
        preemptions=_sum(found[aliases.PREEMPTIONS]),
        inter_token_seconds_sum=_sum(_values(series, token, prefixes, "_sum")),
        inter_token_count=_sum(_values(series, token, prefixes, "_count")),
        iteration_tokens_sum=_sum(_values(series, iteration, prefixes, "_sum")),
        iteration_count=_mean(_values(series, iteration, prefixes, "_count")),
    )


def _values(series: Series, names: Sequence[str], prefixes: Sequence[str], suffix: str = "") -> list[float]:
    """Of all engines, under the first name that is there."""
    for name in names:
        for prefix in prefixes:
            if found := series.get(prefix + name + suffix):
                return [value for _, value in found]
    return []


def _sum(values: Sequence[float]) -> float | None:
    return sum(values) if values else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
