"""What the running engines of a service teach of its profile: the on-line refit, fed from the snapshots of telemetry.

Every pass hands over the new snapshots. Of each, one pod in turn gives a window between its last two scrapes
(`physics.step_windows`), at most one per `_SPACING_SECONDS` for a service whatever its size; windows of a roll-out, of
a restart, with preemptions or while the clock moved are left out and counted by reason. The fit is computed at most
once a minute, at another time for every service.

KV blocks that running requests share count once in vLLM's usage and are read by each: where long prefixes are shared at
the same time the KV term comes out too large, which errs towards longer steps.

What is planned with is the profile with its step-time terms multiplied by what was found, on a grid of a few percent:
then a plan does not change with the last digit, and services on equal hardware keep equal profiles, which the models
judge in one call. Where the load does not tell the terms apart, they move together (the level); where too little was
seen, or nothing fits, the profile stays as it was, and with a poor fit it counts as an estimate.
"""

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from wattkeeper.api.inference_service import ProfileStatus
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.observation import EngineCounters, GpuReading, PodReading
from wattkeeper.domain.plan import Target
from wattkeeper.domain.workload import Workload
from wattkeeper.physics import kv
from wattkeeper.physics.profile import IterationCoefficients, Provenance, ServingProfile
from wattkeeper.physics.refit import HALF_LIFE_SECONDS, LEAST_WINDOWS, Estimate, Refit, RefitStatus
from wattkeeper.physics.step_windows import EngineSample, StepWindow, WindowProblem, between, resident_tokens
from wattkeeper.telemetry.source import Snapshot

NO_SERIES = "NoSeries"
NOT_STARTED = "NotStarted"
CLOCK_UNKNOWN = "ClockUnknown"
CLOCK_MOVED = "ClockMoved"
ROLLING_OUT = "RollingOut"
NO_LENGTHS = "NoLengths"

LEAST_ERROR = 0.03
"""No refit claims a smaller relative error of step time: what simulated engines show at loads that tell all terms."""
_SPACING_SECONDS = 5.0
_MOST_WINDOWS = 720
"""Kept per service: an hour at one per five seconds."""
_ESTIMATE_SECONDS = 60.0
_LEAST_ESTIMATE_SECONDS = 2.0
"""Wall time, where a simulation is sped up."""
_PODS_TRIED = 3
_CLOCK_TOLERANCE = 0.02
"""Relative difference of the SM clock at both ends of a window beyond which it moved."""
_GRID_LOG = 0.04
_ERROR_GRID_LOG = 0.4
_STAY = 0.75
"""A value on a grid stays until the new one is further away than this share of a step."""
_SMALLEST_FACTOR, _LARGEST_FACTOR = 0.2, 5.0
"""Factors outside are no engine of this profile, but a wrong model, unit or pod."""
_BEYOND_LOAD = 1.5
"""The error stated holds up to this many times the largest load seen."""
_POOR_FIT_WIDENING = 1.5
_POOR_FIT_ERROR = 0.25
_UNKNOWN_BLOCK_SIZE = 16
_SCHEDULER = ("max_num_seqs", "max_num_active_seqs", "max_num_batched_tokens", "max_model_len",
              "gpu_memory_utilization", "kv_cache_memory_bytes")  # fmt: skip
"""Arguments that change which steps an engine makes, not how long a step of given work takes."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a refit says, as it is applied, shown and remembered."""

    of: str
    """Names the profile and engine that it was learnt of."""
    state: str
    """A `RefitStatus` value, or NO_SERIES or NOT_STARTED."""
    level: float = 1.0
    """Measured over the profile's step time."""
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """On the fixed part, the part per token and the part per KV token; 1 where nothing is applied."""
    relative_error: float | None = None
    """Of the step time of the profile with the factors; None: the profile's own."""
    confidence: float = 0.0
    windows: int = 0
    weak: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True where the factors are measured."""
        return self.state in (RefitStatus.IDENTIFIED.value, RefitStatus.LOAD_TOO_STEADY.value)


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
            self._begin = _scaled(base.iteration, self.learned.factors)
            self._refit = _new_refit(self._begin, self.speed_up)
            self._last.clear()
        self._base = base
        return _applied(base, self.learned)

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
        self.learned = _learned(
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


def _learned(
    estimate: Estimate,
    refit: Refit,
    *,
    before: Learned,
    base: ServingProfile,
    begin: IterationCoefficients,
    of: str,
) -> Learned:
    """An estimate as it is applied: factors on the base profile, on a grid, with the error that is left."""
    state = estimate.status.value
    windows = estimate.windows
    if estimate.status is RefitStatus.TOO_FEW_WINDOWS:
        return Learned(of=of, state=state, windows=windows)
    # The refit may have begun from what was learnt earlier; level and factors are said of the profile.
    start = _factors(begin, base.iteration)
    found = tuple(a * b for a, b in zip(start, _factors(estimate.iteration, begin), strict=True))
    level = estimate.level * float(np.median(start))
    if estimate.status is RefitStatus.POOR_FIT or not all(_SMALLEST_FACTOR < each < _LARGEST_FACTOR for each in found):
        error = max(_POOR_FIT_WIDENING * base.relative_error, estimate.spread, _POOR_FIT_ERROR)
        return Learned(
            of=of, state=RefitStatus.POOR_FIT.value, level=level, relative_error=_error_on_grid(error, before),
            windows=windows,
        )  # fmt: skip
    # Where a poor fit or too little came before, `before` has factors of one, which is as good a place to start from.
    factors = [_on_grid(each, old, _GRID_LOG) for each, old in zip(found, before.factors, strict=True)]
    error = min(_error_on_grid(_relative_error(estimate, refit), before), base.relative_error)
    return Learned(
        of=of,
        state=state,
        level=level,
        factors=(factors[0], factors[1], factors[2]),
        relative_error=error,
        confidence=estimate.confidence,
        windows=windows,
        weak=estimate.weak,
    )


def _relative_error(estimate: Estimate, refit: Refit) -> float:
    """One sigma of the step time, at the median of the load seen and somewhat beyond its largest."""
    terms = refit.rows[:, 2:5]
    covariance = np.array(estimate.covariance)
    factors = np.array(_factors(estimate.iteration, refit.prior))
    points = (np.median(terms, axis=0), terms.max(axis=0) * np.array([1.0, _BEYOND_LOAD, _BEYOND_LOAD]))
    errors = [math.sqrt(max(float(each @ covariance @ each), 0.0)) / float(each @ factors) for each in points]
    return max(LEAST_ERROR, *errors)


def _factors(found: IterationCoefficients, begin: IterationCoefficients) -> tuple[float, float, float]:
    """Of the fixed, the per-token and the KV term; 1 for a term that the profile does not have."""

    def ratio(name: str) -> float:
        before = float(getattr(begin, name))
        return float(getattr(found, name)) / before if before > 0.0 else 1.0

    return ratio("d0_seconds"), ratio("dt_seconds_per_token"), ratio("dkv_seconds_per_kv_token")


def _scaled(iteration: IterationCoefficients, factors: Sequence[float]) -> IterationCoefficients:
    fixed, token, memory = factors
    own = iteration.dn_seconds_per_decode
    return replace(
        iteration,
        d0_seconds=iteration.d0_seconds * fixed,
        dt_seconds_per_token=iteration.dt_seconds_per_token * token,
        dn_seconds_per_decode=None if own is None else own * token,
        da_seconds_per_token_squared=iteration.da_seconds_per_token_squared * token,
        dkv_seconds_per_kv_token=iteration.dkv_seconds_per_kv_token * memory,
    )


def _applied(base: ServingProfile, learned: Learned) -> ServingProfile:
    """The profile with what was learnt; itself where that is nothing."""
    if learned.relative_error is None:
        return base
    if learned.state == RefitStatus.POOR_FIT.value:
        return replace(
            base,
            provenance=Provenance.ESTIMATED,
            relative_error=learned.relative_error,
            notes=(*base.notes, "measured steps do not fit this form"),
        )
    if not learned.fits:
        return base
    identified = learned.state == RefitStatus.IDENTIFIED.value
    return replace(
        base,
        iteration=_scaled(base.iteration, learned.factors),
        provenance=Provenance.FITTED if identified else base.provenance,
        relative_error=learned.relative_error,
        notes=(*base.notes, "step time refitted to the running engines"),
    )


def _on_grid(value: float, before: float, step_log: float) -> float:
    """The nearest point of a grid in logarithms; the one before unless it is clearly left."""
    if abs(math.log(value / before)) <= _STAY * step_log:
        return before
    return round(math.exp(step_log * round(math.log(value) / step_log)), 4)


def _error_on_grid(error: float, before: Learned) -> float:
    nearest = round(math.exp(_ERROR_GRID_LOG * round(math.log(error) / _ERROR_GRID_LOG)), 4)
    known = nearest if before.relative_error is None else before.relative_error
    return max(LEAST_ERROR, _on_grid(error, known, _ERROR_GRID_LOG))


def describe(learned: Learned, dropped: Mapping[str, int]) -> str:
    """What is known of the step time, and why it is not more, in words."""
    if learned.state == NO_SERIES:
        return "step time not measured: these engines serve no iteration_tokens_total"
    if learned.state in (NOT_STARTED, RefitStatus.TOO_FEW_WINDOWS.value):
        why = max(dropped, key=lambda reason: dropped[reason], default=None)
        most = "" if why is None else f", most others left out for {why}"
        return f"step time not measured yet: {learned.windows} of {LEAST_WINDOWS} windows{most}"
    if not learned.fits:
        return f"measured steps do not fit this profile (level {learned.level:.2f}): it stays, with a wider margin"
    text = f"measured steps take {learned.level:.2f} times the profile's"
    if learned.relative_error is not None:
        text += f", known to {learned.relative_error:.0%} from {learned.windows} windows"
    return text if not learned.weak else f"{text}; the load does not tell {', '.join(learned.weak)} apart"


def to_status(learned: Learned, profile: ServingProfile | None, *, name: str | None = None) -> ProfileStatus:
    """As status shows and keeps it; `name` is that of the ModelProfile."""
    if profile is None:
        return ProfileStatus()
    fixed, token, memory = learned.factors
    return ProfileStatus(
        accelerator=profile.gpu.name,
        gpus_per_replica=profile.gpus_per_replica,
        model_profile=name,
        source=profile.provenance.value,
        refit=learned.state,
        level=_rounded(learned.level),
        confidence=_rounded(learned.confidence),
        relative_error=_rounded(profile.relative_error),
        windows=learned.windows,
        weak_terms=list(learned.weak),
        d0_factor=fixed,
        dt_factor=token,
        dkv_factor=memory,
        learned_of=learned.of,
    )


def from_status(kept: ProfileStatus) -> Learned:
    """What was learnt before a restart; of use only where it is said of the same profile and its terms are measured."""
    factors = (kept.d0_factor, kept.dt_factor, kept.dkv_factor)
    learned = Learned(
        of=kept.learned_of,
        state=kept.refit,
        level=kept.level,
        factors=factors,
        relative_error=kept.relative_error,
        confidence=kept.confidence,
        windows=kept.windows,
        weak=tuple(kept.weak_terms),
    )
    sane = all(_SMALLEST_FACTOR < each < _LARGEST_FACTOR for each in factors)
    return learned if learned.fits and sane else Learned(of="", state=NOT_STARTED)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
