"""What was scraped of pods and GPU exporters so far, and the snapshot that it makes: rates from counters, with ages.

Knows nothing of how pages come: `telemetry.scrape` fetches them, a simulation hands over what its engines counted.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from wattkeeper.domain.observation import EngineCounters, GpuReading, PodReading
from wattkeeper.telemetry import aliases, assemble
from wattkeeper.telemetry.assemble import Sample
from wattkeeper.telemetry.counters import CounterHistory
from wattkeeper.telemetry.engine import Labels, Series
from wattkeeper.telemetry.exposition import EngineSample, histogram_of
from wattkeeper.telemetry.source import PodKey, Snapshot

GPU_NAMES: Mapping[str, str] = {
    **{name: canonical for canonical, metric in aliases.DCGM_METRICS.items() for name in metric.names},
    aliases.KEPLER_NODE_WATTS: "kepler_node",
    aliases.KEPLER_POD_WATTS: "kepler_pod_parts",
}
"""Series that are read of a GPU exporter, and what they are called in here."""


class Digest:
    """Histories of all pods and exporters. Not for use by several threads at once."""

    def __init__(
        self,
        *,
        rate_window_seconds: float = 60.0,
        length_window_seconds: float = 300.0,
        forget_after_seconds: float = 300.0,
        power_max_age_seconds: float = 90.0,
    ) -> None:
        self._rate_window, self._length_window = rate_window_seconds, length_window_seconds
        self._forget_after, self._power_max_age = forget_after_seconds, power_max_age_seconds
        self._engines: dict[PodKey, _Engine] = {}
        self._gpus: dict[str, _GpuHistory] = {}

    def keep(self, *, pods: Collection[PodKey], exporters: Collection[str]) -> None:
        """Forget all others."""
        self._engines = {key: engine for key, engine in self._engines.items() if key in pods}
        self._gpus = {name: history for name, history in self._gpus.items() if name in exporters}

    def add_engine(
        self, key: PodKey, sample: EngineSample, engine: EngineCounters | None, *, time_seconds: float
    ) -> None:
        """One scrape of one pod."""
        known = self._engines.get(key)
        if known is None:
            history = CounterHistory(rate_window_seconds=self._rate_window, length_window_seconds=self._length_window)
            known = self._engines[key] = _Engine(key, history)
        known.add(sample, engine, time_seconds)

    def add_gpus(self, exporter: str, series: Series, *, time_seconds: float) -> None:
        """One scrape of one GPU exporter, named as the caller likes: series by the names in GPU_NAMES."""
        self._gpus.setdefault(exporter, _GpuHistory(self._rate_window)).add(series, time_seconds)

    def snapshot(self, now_seconds: float, *, errors: Sequence[str] = ()) -> Snapshot:
        """The fleet as it is known now; pods that were not scraped for long are left out."""
        gpus, gpus_by_pod, odd = assemble.gpu_readings(
            self._gpu_answers(now_seconds), max_age_seconds=self._power_max_age
        )
        pods: dict[PodKey, PodReading] = {}
        for key, engine in self._engines.items():
            age = max(0.0, now_seconds - engine.history.time_seconds)
            if age <= self._forget_after:
                pods[key] = engine.reading(age_seconds=age, gpus=gpus_by_pod.get(key, ()))
        return Snapshot(time_seconds=now_seconds, pods=pods, errors=(*errors, *odd), gpus=gpus)

    def _gpu_answers(self, now_seconds: float) -> dict[str, list[Sample]]:
        """GPU series of all exporters, shaped as Prometheus would answer."""
        answers: dict[str, list[Sample]] = {}
        for history in self._gpus.values():
            if now_seconds - history.time_seconds <= self._forget_after:
                for name, samples in history.answers(now_seconds).items():
                    answers.setdefault(name, []).extend(samples)
        answers["kepler_pod"] = _kepler_pods(answers.pop("kepler_pod_parts", []))
        return answers


class _Engine:
    """One pod: its history, and the reading made of it, which only its age changes until the next scrape."""

    def __init__(self, key: PodKey, history: CounterHistory) -> None:
        self.history = history
        self._key = key
        self._counters: EngineCounters | None = None
        self._reading: PodReading | None = None

    def add(self, sample: EngineSample, counters: EngineCounters | None, time_seconds: float) -> None:
        self.history.add(sample, time_seconds)
        self._counters, self._reading = counters, None

    def reading(self, *, age_seconds: float, gpus: tuple[GpuReading, ...]) -> PodReading:
        if self._reading is None:
            self._reading = _pod_reading(self.history, key=self._key, engine=self._counters)
        return replace(self._reading, age_seconds=age_seconds, gpus=gpus)


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
            for name, canonical in GPU_NAMES.items()
            for labels, value in series.get(name, [])
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
    """The reading of one engine at the moment of its scrape; rates are None until it was scraped twice."""
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
