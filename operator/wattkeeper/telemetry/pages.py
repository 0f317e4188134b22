"""Readings from the `/metrics` pages of engines and GPU exporters, as they come, with what came before."""

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wattkeeper.domain.errors import TelemetryError
from wattkeeper.domain.observation import EngineCounters, PodReading
from wattkeeper.telemetry import aliases, assemble
from wattkeeper.telemetry.assemble import Sample
from wattkeeper.telemetry.counters import CounterHistory
from wattkeeper.telemetry.engine import Labels, Series, engine_counters
from wattkeeper.telemetry.exposition import (
    EngineSample,
    ExpositionReader,
    engine_sample,
    histogram_of,
    wanted_names,
)
from wattkeeper.telemetry.source import PodKey, Snapshot

_GPU_NAMES: Mapping[str, str] = {
    **{name: canonical for canonical, metric in aliases.DCGM_METRICS.items() for name in metric.names},
    aliases.KEPLER_NODE_WATTS: "kepler_node",
    aliases.KEPLER_POD_WATTS: "kepler_pod_parts",
}


@dataclass(frozen=True, kw_only=True)
class ScrapeTarget:
    """One endpoint: an engine (one pod) or a GPU exporter (one node, its labels name the pods)."""

    url: str
    role: Literal["engine", "gpu"] = "engine"
    namespace: str = ""
    pod: str = ""

    def __post_init__(self) -> None:
        if self.role == "engine" and not (self.namespace and self.pod):
            raise ValueError(f"the engine target {self.url} needs a namespace and a pod")


class PageReadings:
    """Pages in, snapshots out. Rates come from earlier pages of the same target; not for several threads at once."""

    def __init__(
        self,
        *,
        rate_window_seconds: float,
        length_window_seconds: float,
        prefixes: tuple[str, ...] = aliases.DEFAULT_PREFIXES,
        power_max_age_seconds: float = 90.0,
        forget_after_seconds: float = 300.0,
    ) -> None:
        """A target that gave no page for `forget_after_seconds` has no reading any more."""
        self._rate_window_seconds = rate_window_seconds
        self._length_window_seconds = length_window_seconds
        self._prefixes = prefixes
        self._power_max_age_seconds = power_max_age_seconds
        self._forget_after_seconds = forget_after_seconds
        self._histories: dict[ScrapeTarget, CounterHistory] = {}
        self._counters: dict[ScrapeTarget, EngineCounters | None] = {}
        self._gpus: dict[ScrapeTarget, _GpuHistory] = {}
        self._made: dict[ScrapeTarget, PodReading] = {}
        """Readings since the last page: until the next one only age and GPUs change."""
        self._engine_reader = ExpositionReader(wanted_names(prefixes))
        self._gpu_reader = ExpositionReader(_GPU_NAMES)

    def keep_only(self, targets: Collection[ScrapeTarget]) -> None:
        """Forget all other targets."""
        kept = set(targets)
        self._histories = {target: history for target, history in self._histories.items() if target in kept}
        self._counters = {target: known for target, known in self._counters.items() if target in kept}
        self._gpus = {target: history for target, history in self._gpus.items() if target in kept}
        self._made = {target: reading for target, reading in self._made.items() if target in kept}

    def take(self, target: ScrapeTarget, text: str, time_seconds: float) -> None:
        """Put a page into the history of its target. Raises ValueError or TelemetryError where it is of no use."""
        if target.role == "gpu":
            self.take_gpus(target, self._gpu_reader.read(text), time_seconds)
            return
        read = self._engine_reader.read(text)
        sample = engine_sample(read, self._prefixes)
        if aliases.RUNNING not in sample.gauges:
            names = " or ".join(aliases.full_names(aliases.ENGINE_METRICS[aliases.RUNNING], self._prefixes))
            raise TelemetryError(f"the page has no series {names}: is this a vLLM engine?")
        counters = engine_counters(read, self._prefixes, time_seconds=time_seconds)
        self.take_engine(target, sample, counters, time_seconds)

    def take_engine(
        self, target: ScrapeTarget, sample: EngineSample, counters: EngineCounters | None, time_seconds: float
    ) -> None:
        """The same for what the page of an engine says, where nobody wrote it as text."""
        history = self._histories.get(target)
        if history is None:
            history = self._histories[target] = CounterHistory(
                rate_window_seconds=self._rate_window_seconds, length_window_seconds=self._length_window_seconds
            )
        self._counters[target] = counters
        self._made.pop(target, None)
        history.add(sample, time_seconds)

    def take_gpus(self, target: ScrapeTarget, series: Series, time_seconds: float) -> None:
        """The same for the series of a GPU exporter."""
        self._gpus.setdefault(target, _GpuHistory(self._rate_window_seconds)).add(series, time_seconds)

    def snapshot(self, now_seconds: float) -> Snapshot:
        """What is known of all targets now; `errors` says what was odd about GPU series."""
        gpus, gpus_by_pod, odd = assemble.gpu_readings(
            self._gpu_answers(now_seconds), max_age_seconds=self._power_max_age_seconds
        )
        pods: dict[PodKey, PodReading] = {}
        for target, history in self._histories.items():
            age = max(0.0, now_seconds - history.time_seconds)
            if age <= self._forget_after_seconds:
                key = (target.namespace, target.pod)
                made = self._made.get(target)
                if made is None:
                    made = self._made[target] = _pod_reading(history, key=key, engine=self._counters.get(target))
                pods[key] = replace(made, age_seconds=age, gpus=gpus_by_pod.get(key, ()))
        return Snapshot(time_seconds=now_seconds, pods=pods, errors=tuple(odd), gpus=gpus)

    def _gpu_answers(self, now_seconds: float) -> dict[str, list[Sample]]:
        """GPU series of all exporters, shaped as Prometheus would answer."""
        answers: dict[str, list[Sample]] = {}
        for history in self._gpus.values():
            if now_seconds - history.time_seconds <= self._forget_after_seconds:
                for name, samples in history.answers(now_seconds).items():
                    answers.setdefault(name, []).extend(samples)
        answers["kepler_pod"] = _kepler_pods(answers.pop("kepler_pod_parts", []))
        return answers


class _GpuHistory:
    """Gauges of one GPU exporter; watts and clocks are averaged over the window, to match the token rates."""

    def __init__(self, window_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._values: dict[tuple[str, frozenset[tuple[str, str]]], deque[tuple[float, float]]] = {}
        self._latest: list[tuple[str, Labels, float]] = []
        self.time_seconds = 0.0

    def add(self, series: Series, time_seconds: float) -> None:
        self.time_seconds = time_seconds
        self._latest = [
            (canonical, labels, value)
            for name, canonical in _GPU_NAMES.items()
            for labels, value in series.get(name, [])
            if math.isfinite(value)
        ]
        seen: dict[tuple[str, frozenset[tuple[str, str]]], deque[tuple[float, float]]] = {}
        for canonical, labels, value in self._latest:
            if canonical == aliases.GPU_LIMIT:
                continue
            key = (canonical, frozenset(labels.items()))
            if key in seen:
                continue  # an older name of the same quantity
            values = seen[key] = self._values.get(key, deque())
            values.append((time_seconds, value))
            while values[0][0] < time_seconds - self._window_seconds:
                values.popleft()
        self._values = seen

    def answers(self, now_seconds: float) -> dict[str, list[Sample]]:
        found: dict[str, list[Sample]] = {}
        for (canonical, identity), values in self._values.items():
            mean = sum(value for _, value in values) / len(values)
            found.setdefault(canonical, []).append(Sample(dict(identity), now_seconds, mean))
            if canonical == aliases.GPU_POWER:
                found.setdefault("gpu_age", []).append(Sample(dict(identity), now_seconds, self.time_seconds))
        for canonical, labels, value in self._latest:
            if canonical == aliases.GPU_LIMIT:
                found.setdefault(canonical, []).append(Sample(labels, now_seconds, value))
        return found


def _pod_reading(
    history: CounterHistory,
    *,
    key: PodKey,
    engine: EngineCounters | None,
) -> PodReading:
    """The reading of one engine at the moment of its page; rates are None until it was scraped twice."""
    sample = history.latest
    gauges = sample.gauges if sample is not None else {}
    raw = dict(zip(sample.keys, sample.counters.tolist(), strict=True)) if sample is not None else {}
    rates = history.rates() or {}
    lengths = history.length_rates() or {}
    return PodReading(
        namespace=key[0],
        pod=key[1],
        age_seconds=0.0,
        running=gauges.get(aliases.RUNNING),
        waiting=gauges.get(aliases.WAITING),
        kv_usage=gauges.get(aliases.KV_USAGE),
        finished_per_second=rates.get((aliases.FINISHED, "")),
        finished_requests=raw.get((aliases.FINISHED, "")),
        in_system_growth_per_second=history.growth_per_second(),
        prompt_tokens_per_second=rates.get((aliases.PROMPT_TOKENS, "")),
        generation_tokens_per_second=rates.get((aliases.GENERATION_TOKENS, "")),
        preemptions_per_second=rates.get((aliases.PREEMPTIONS, "")),
        prefix_queries_per_second=rates.get((aliases.PREFIX_QUERIES, "")),
        prefix_hits_per_second=rates.get((aliases.PREFIX_HITS, "")),
        ttft_seconds=histogram_of(aliases.TTFT, rates),
        tpot_seconds=histogram_of(aliases.TPOT, rates),
        prompt_tokens=histogram_of(aliases.PROMPT_LENGTH, lengths),
        output_tokens=histogram_of(aliases.OUTPUT_LENGTH, lengths),
        kv_cache=sample.kv_cache if sample is not None else None,
        engine=engine,
    )


def _kepler_pods(parts: Sequence[Sample]) -> list[Sample]:
    """Kepler's watts per pod and GPU, added up per pod; what belongs to ended pods is left out."""
    sums: dict[PodKey, Sample] = {}
    for sample in parts:
        key = aliases.pod_key(sample.labels)
        if key is None or sample.labels.get("state") == "terminated":
            continue
        before = sums[key].value if key in sums else 0.0
        labels = {"namespace": key[0], "pod": key[1]}
        sums[key] = Sample(labels, sample.time_seconds, before + sample.value)
    return list(sums.values())
