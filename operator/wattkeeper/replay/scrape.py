"""The simulated fleet as Prometheus has it: each pod scraped in turn, seen a little later, now and then not at all.

A `MetricsSource` for the operator's own `Collector`. What follows a scrape is the operator's code too
(`telemetry.pages`): rates over a window from counters and histograms with vLLM's buckets. Only the text between the
engine's counters and the parsed sample is left out; tests hold the two against each other.
"""

import functools
import itertools
import math
import zlib
from collections import deque
from collections.abc import Callable

import numpy as np

from wattkeeper.domain.errors import TelemetryError
from wattkeeper.domain.observation import EngineCounters, KvCacheInfo
from wattkeeper.replay.stage import EPOCH_SECONDS, MetricsPath
from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.engine import Series
from wattkeeper.telemetry.exposition import EngineSample
from wattkeeper.telemetry.pages import PageReadings, ScrapeTarget
from wattkeeper.telemetry.promql import SUM_BUCKET
from wattkeeper.telemetry.source import PodKey, Snapshot
from wattkeeper.twin.counters import BucketCounts
from wattkeeper.twin.counters import EngineCounters as Counted
from wattkeeper.twin.fleet import Fleet, Service
from wattkeeper.twin.nodes import Gpu
from wattkeeper.twin.replica import Replica

_LOSSES = 41
_HISTOGRAMS = (aliases.TTFT, aliases.TPOT, aliases.PROMPT_LENGTH, aliases.OUTPUT_LENGTH)
_COUNTERS = (
    aliases.FINISHED,
    aliases.PROMPT_TOKENS,
    aliases.GENERATION_TOKENS,
    aliases.PREEMPTIONS,
    aliases.PREFIX_QUERIES,
    aliases.PREFIX_HITS,
)
_POWER, _CLOCK, _LIMIT = (
    aliases.DCGM_METRICS[name].names[0] for name in (aliases.GPU_POWER, aliases.GPU_CLOCK, aliases.GPU_LIMIT)
)
_Keys = tuple[tuple[str, float | str], ...]


class FleetSource:
    """Call `scrape` at every multiple of the path's offset step; `collect` answers as a query would."""

    def __init__(self, fleet: Fleet, service: Service, path: MetricsPath, *, seed: int) -> None:
        self._fleet, self._service, self._path = fleet, service, path
        self._readings = PageReadings(
            rate_window_seconds=path.rate_window_seconds, length_window_seconds=path.length_window_seconds
        )
        self._rng = np.random.default_rng((seed, _LOSSES))
        self._under_way: deque[tuple[float, Callable[[], None]]] = deque()
        self._keys: dict[int, _Keys] = {}
        self.scrapes = 0
        self.lost = 0

    def scrape(self, step: int) -> None:
        """The scrapes that are due at `step` offset steps after the beginning, which is now."""
        path, now = self._path, self._fleet.now
        slot = step % path.slots
        silent, unix = path.out(now), EPOCH_SECONDS + now
        for key, member in self._service.members.items():
            counted = member.counters if self._slot(key[1]) == slot else None
            if member.replica is not None and counted is not None and self._arrives(silent):
                sample, counters = self._sample(member.replica, counted, now)
                take = functools.partial(self._readings.take_engine, _engine(key), sample, counters, unix)
                self._under_way.append((now + path.delay_seconds, take))
        for node, gpus in self._fleet.inventory.nodes.items():
            if self._slot(node) == slot and self._arrives(silent):
                take = functools.partial(self._readings.take_gpus, _exporter(node), _gpu_series(gpus), unix)
                self._under_way.append((now + path.delay_seconds, take))

    def collect(self, now_seconds: float) -> Snapshot:
        """What a query finds now (Unix time). Raises TelemetryError in an outage."""
        now = self._fleet.now
        if self._path.out(now):
            raise TelemetryError("Prometheus does not answer (an outage that the replay was asked for)")
        while self._under_way and self._under_way[0][0] <= now:
            self._under_way.popleft()[1]()
        engines = [_engine(key) for key in self._service.members]
        self._readings.keep_only([*engines, *map(_exporter, self._fleet.inventory.nodes)])
        return self._readings.snapshot(now_seconds)

    def _slot(self, name: str) -> int:
        return zlib.crc32(name.encode()) % self._path.slots

    def _arrives(self, silent: bool) -> bool:
        self.scrapes += 1
        lost = silent or (self._path.lost_share > 0.0 and float(self._rng.random()) < self._path.lost_share)
        self.lost += lost
        return not lost

    def _sample(self, replica: Replica, counted: Counted, now: float) -> tuple[EngineSample, EngineCounters]:
        hardware = replica.hardware
        histograms = (
            counted.ttft_seconds,
            counted.time_per_output_token_seconds,
            counted.prompt_lengths,
            counted.generation_lengths,
        )
        keys = self._keys.get(hardware.max_model_len)
        if keys is None:
            keys = self._keys[hardware.max_model_len] = _keys(histograms)
        finished = float(sum(counted.finished.values()))
        running, waiting = float(len(replica.running)), float(len(replica.waiting))
        values: list[float] = [
            finished,
            counted.prompt_tokens,
            counted.generation_tokens,
            counted.preemptions,
            counted.prefix_queries,
            counted.prefix_hits,
        ]
        for histogram in histograms:
            values.extend(histogram.cumulative())
            values.append(histogram.total)
        sample = EngineSample(
            gauges={aliases.RUNNING: running, aliases.WAITING: waiting, aliases.KV_USAGE: replica.kv_usage},
            keys=keys,
            counters=np.array(values, dtype=np.float64),
            kv_cache=KvCacheInfo(
                num_gpu_blocks=hardware.num_gpu_blocks,
                block_size=hardware.block_size,
                size_tokens=hardware.num_gpu_blocks * hardware.block_size,
                cache_dtype=hardware.cache_dtype,
            ),
        )
        engine = EngineCounters(
            time_seconds=EPOCH_SECONDS + now,
            running=running,
            waiting=waiting,
            kv_usage=replica.kv_usage,
            finished_requests=finished,
            prompt_tokens=float(counted.prompt_tokens),
            cached_prompt_tokens=float(counted.cached_prompt_tokens),
            generation_tokens=float(counted.generation_tokens),
            preemptions=float(counted.preemptions),
            inter_token_seconds_sum=counted.inter_token_seconds.total,
            inter_token_count=float(counted.inter_token_seconds.count),
            iteration_tokens_sum=counted.iteration_tokens.total,
            iteration_count=float(counted.iteration_tokens.count),
        )
        return sample, engine


@functools.cache
def _engine(key: PodKey) -> ScrapeTarget:
    return ScrapeTarget(url="", namespace=key[0], pod=key[1])


@functools.cache
def _exporter(node: str) -> ScrapeTarget:
    return ScrapeTarget(url=node, role="gpu")


def _keys(histograms: tuple[BucketCounts, ...]) -> _Keys:
    found: list[tuple[str, float | str]] = [(name, "") for name in _COUNTERS]
    for name, histogram in zip(_HISTOGRAMS, histograms, strict=True):
        found.extend((name, bound) for bound in itertools.chain(histogram.bounds, (math.inf,)))
        found.append((name, SUM_BUCKET))
    return tuple(found)


def _gpu_series(gpus: list[Gpu]) -> Series:
    series: Series = {_POWER: [], _CLOCK: [], _LIMIT: []}
    for gpu in gpus:
        labels = {"gpu": str(gpu.index), "UUID": gpu.uuid, "modelName": gpu.card.dcgm_name, "Hostname": gpu.node}
        if gpu.holder is not None:
            holder = gpu.holder
            labels |= {"namespace": holder.namespace, "pod": holder.pod, "container": holder.container}
        series[_POWER].append((labels, gpu.power_watts))
        series[_CLOCK].append((labels, gpu.clock_mhz))
        series[_LIMIT].append((labels, gpu.limit_watts))
    return series
