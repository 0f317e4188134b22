"""What the running engines of a service teach of its profile: the on-line refit, fed from the snapshots of telemetry.

Every pass hands over the new snapshots. Of each, one pod in turn gives a window between its last two scrapes
(`physics.step_windows`), at most one per `_SPACING_SECONDS` for a service whatever its size; windows of a roll-out, of
a restart, with preemptions or while the clock moved are left out and counted by reason. The fit is computed at most
once a minute, at another time for every service.

KV blocks that running requests share count once in vLLM's usage and are read by each: where long prefixes are shared at
the same time the KV term comes out too large, which errs towards longer steps.

How a fit becomes the profile that is planned with is in `controller.learned`.
"""

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wattkeeper.controller import learned
from wattkeeper.controller.learned import NO_SERIES, NOT_STARTED, Learned
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.observation import EngineCounters, GpuReading, PodReading
from wattkeeper.domain.plan import Target
from wattkeeper.domain.workload import Workload
from wattkeeper.physics import kv
from wattkeeper.physics.profile import IterationCoefficients, ServingProfile
from wattkeeper.physics.refit import HALF_LIFE_SECONDS, Refit, RefitStatus
from wattkeeper.physics.step_windows import EngineSample, StepWindow, WindowProblem, between, resident_tokens
from wattkeeper.telemetry.source import Snapshot

CLOCK_UNKNOWN = "ClockUnknown"
CLOCK_MOVED = "ClockMoved"
ROLLING_OUT = "RollingOut"
NO_LENGTHS = "NoLengths"

_SPACING_SECONDS = 5.0
_MOST_WINDOWS = 720
"""Kept per service: an hour at one per five seconds."""
_ESTIMATE_SECONDS = 60.0
_LEAST_ESTIMATE_SECONDS = 2.0
"""Wall time, where a simulation is sped up."""
_PODS_TRIED = 3
_CLOCK_TOLERANCE = 0.02
"""Relative difference of the SM clock at both ends of a window beyond which it moved."""
_UNKNOWN_BLOCK_SIZE = 16
_SCHEDULER = ("max_num_seqs", "max_num_active_seqs", "max_num_batched_tokens", "max_model_len",
              "gpu_memory_utilization", "kv_cache_memory_bytes")  # fmt: skip
"""Arguments that change which steps an engine makes, not how long a step of given work takes."""


@dataclass(kw_only=True)
class Learning:
    """The refit of one service. Times of snapshots are wall time; `speed_up` is the clock's."""

    seed: str
    """Spreads the estimates of a fleet over time; the service's uid."""
    speed_up: float = 1.0
    learned: Learned = field(default_factory=lambda: Learned(of="", state=NOT_STARTED))
    dropped: Counter[str] = field(default_factory=Counter)
    """Windows that were left out, by reason, since the start."""
    used: int = 0
    """Windows that were taken in since the start."""
    _refit: Refit | None = None
    _base: ServingProfile | None = None
    _begin: IterationCoefficients | None = None
    """What the refit started from: the profile, or what was learnt before a restart."""
    _last: dict[str, tuple[EngineCounters, float | None]] = field(default_factory=dict)
    _last_window: float = -math.inf
    _due: float | None = None
    _turn: int = 0
    _seen_pods: bool = False
    _seen_series: bool = False
    _fresh_windows: int = 0

    def profile_of(self, base: ServingProfile, engine: EngineSettings) -> ServingProfile:
        """The profile to plan with. Another profile or engine than before starts afresh."""
        name = _name(base, engine)
        if self._base is None or name != self.learned.of:
            if name != self.learned.of:
                self.learned = Learned(of=name, state=NOT_STARTED)
            self._begin = learned.scaled(base.iteration, self.learned.factors)
            self._refit = _new_refit(self._begin, self.speed_up)
            self._last.clear()
        self._base = base
        return learned.applied(base, self.learned)

    def observe(
        self,
        snapshot: Snapshot,
        *,
        namespace: str,
        pods: Sequence[str],
        current: Target,
        workload: Workload | None,
        gpus_by_pod: Mapping[str, Sequence[GpuReading]],
        rolling_out: bool,
    ) -> None:
        """Take a snapshot in. `gpus_by_pod` are the node agent's readings, for pods without an exporter's."""
        base = self._base
        if base is None or self._refit is None:
            return
        if rolling_out:
            self._last.clear()
            self.dropped[ROLLING_OUT] += 1
            return
        shown = {pod: reading for pod in pods if (reading := snapshot.pods.get((namespace, pod))) is not None}
        self._seen_pods |= bool(shown)
        before, self._last = self._last, {}
        fresh = []
        for pod, reading in shown.items():
            engine = reading.engine
            if engine is None:
                continue
            known = before.get(pod)
            if known is not None and engine.time_seconds <= known[0].time_seconds:
                self._last[pod] = known
                continue
            self._last[pod] = (engine, _clock_ratio(reading.gpus or gpus_by_pod.get(pod, ()), current, base))
            if known is not None:
                fresh.append(pod)
        self._seen_series |= any(engine.iteration_count is not None for engine, _ in self._last.values())
        if not fresh or snapshot.time_seconds - self._last_window < 0.9 * _SPACING_SECONDS / self.speed_up:
            return
        for _ in range(min(_PODS_TRIED, len(fresh))):
            self._turn += 1
            pod = fresh[self._turn % len(fresh)]
            found = self._window(before[pod], self._last[pod], shown[pod], current)
            if isinstance(found, StepWindow) and workload is None:
                found = NO_LENGTHS
            if isinstance(found, StepWindow) and workload is not None:
                self._take(found, workload)
                self._last_window = snapshot.time_seconds
                return
            self.dropped[str(found)] += 1

    def conclude(self, now_seconds: float) -> None:
        """Compute the fit where it is due. `now_seconds`: wall time."""
        every = max(_ESTIMATE_SECONDS / self.speed_up, _LEAST_ESTIMATE_SECONDS)
        if self._due is None:
            self._due = now_seconds + every * (zlib.crc32(self.seed.encode()) % 1000) / 1000
        if now_seconds < self._due or self._refit is None or self._base is None or self._begin is None:
            return
        self._due = now_seconds + every
        if not self._fresh_windows:
            if not self.learned.fits and self._seen_pods and not self._seen_series:
                self.learned = replace(self.learned, state=NO_SERIES)
            return
        self._fresh_windows = 0
        estimate = self._refit.estimate()
        if estimate.status is RefitStatus.TOO_FEW_WINDOWS and self.learned.fits:
            return  # what was remembered stands until there is enough to judge it
        self.learned = learned.of_estimate(
            estimate, self._refit, before=self.learned, base=self._base, begin=self._begin, of=self.learned.of
        )

    def _window(
        self,
        before: tuple[EngineCounters, float | None],
        after: tuple[EngineCounters, float | None],
        reading: PodReading,
        current: Target,
    ) -> StepWindow | str:
        if self._base is None or before[1] is None or after[1] is None:
            return CLOCK_UNKNOWN
        if abs(after[1] - before[1]) > _CLOCK_TOLERANCE * after[1]:
            return CLOCK_MOVED
        capacity = kv.capacity_tokens(self._base, current.engine, reading.kv_cache)
        cache = reading.kv_cache
        size = (cache.block_size if cache is not None else None) or current.engine.block_size or _UNKNOWN_BLOCK_SIZE
        first, last = (
            _sample(each, capacity_tokens=capacity, block_size=size, speed_up=self.speed_up)
            for each in (before[0], after[0])
        )
        if first is None or last is None:
            return WindowProblem.MISSING.value
        found = between(first, last, clock_ratio=0.5 * (before[1] + after[1]))
        return found if isinstance(found, StepWindow) else found.value

    def _take(self, window: StepWindow, workload: Workload) -> None:
        if self._refit is None:
            return
        prompt, hit = workload.prompt, min(max(workload.prefix_hit_ratio, 0.0), 0.99)
        # Cached tokens are history of what is computed: (1 - h) l tokens with h l before them.
        products = prompt.second_moment / prompt.mean * (hit + 0.5 * (1.0 - hit))
        rows = len(self._refit.rows)
        self._refit = self._refit.observe(
            window, answer_tokens=workload.output.mean, products_per_prefill_token=products
        )
        if len(self._refit.rows) > rows:
            self.used += 1
            self._fresh_windows += 1
        if len(self._refit.rows) > _MOST_WINDOWS:
            self._refit = replace(self._refit, rows=self._refit.rows[-_MOST_WINDOWS:])


def _name(profile: ServingProfile, engine: EngineSettings) -> str:
    """Changes where the profile's terms or an argument that they depend on do."""
    arguments = {name: value for name, value in vars(engine).items() if name not in _SCHEDULER}
    text = f"{profile.model} {profile.gpu.name} {profile.gpus_per_replica} {profile.iteration} {arguments}"
    return f"{zlib.crc32(text.encode()):08x}"


def _new_refit(begin: IterationCoefficients, speed_up: float) -> Refit | None:
    try:
        return Refit(prior=begin, half_life_seconds=HALF_LIFE_SECONDS * speed_up)
    except ValueError:
        return None  # a ModelProfile without a fixed term: nothing to refit


def _clock_ratio(gpus: Sequence[GpuReading], current: Target, profile: ServingProfile) -> float | None:
    """Mean SM clock of a pod's GPUs over the largest; the lock where none is measured; None under a cap without either.

    A power cap alone leaves the clock to the card.
    """
    measured = [gpu.sm_clock_mhz for gpu in gpus if gpu.sm_clock_mhz]
    if measured:
        return min(1.0, sum(measured) / len(measured) / profile.gpu.max_clock_mhz)
    if current.power_cap_watts is not None and current.power_cap_watts < profile.gpu.tdp_watts:
        return None
    return 1.0 if current.clock_mhz is None else min(1.0, current.clock_mhz / profile.gpu.max_clock_mhz)


def _sample(
    counters: EngineCounters, *, capacity_tokens: float, block_size: float, speed_up: float
) -> EngineSample | None:
    """None where this version of vLLM does not count something that is needed."""
    needed = (
        counters.inter_token_seconds_sum,
        counters.inter_token_count,
        counters.iteration_tokens_sum,
        counters.iteration_count,
        counters.generation_tokens,
        counters.preemptions,
        counters.running,
        counters.kv_usage,
    )
    values = [value for value in needed if value is not None]
    if len(values) < len(needed):
        return None
    gap_seconds, gaps, tokens, steps, generated, preemptions, running, usage = values
    return EngineSample(
        time_seconds=counters.time_seconds * speed_up,
        inter_token_seconds_sum=gap_seconds,
        inter_token_count=gaps,
        iteration_tokens_sum=tokens,
        iteration_count=steps,
        generation_tokens=generated,
        preemptions=preemptions,
        running=running,
        kv_tokens=resident_tokens(
            kv_usage=usage, capacity_tokens=capacity_tokens, running=running, block_size=block_size
        ),
        cached_prompt_tokens=_counted_hits(tokens - generated, counters),
    )


def _counted_hits(prompt_part: float, counters: EngineCounters) -> float:
    """Prefix-cache hits where this version counts them in its iteration tokens (until about 0.17 all did), else 0."""
    prompts, cached = counters.prompt_tokens, counters.cached_prompt_tokens
    if prompts is None or cached is None:
        return 0.0
    return cached if abs(prompt_part - prompts) <= abs(prompt_part - (prompts - cached)) else 0.0
