"""The lever space of one service: which replicas, caps, clock locks and engine arguments a plan may choose.

Engine rules follow vLLM's own start-up validation: the token budget may not be below `max_num_seqs`, nor below
`max_model_len` without chunked prefill. Where an argument is not set, vLLM's default for the card applies.
"""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wattkeeper.domain.engine import EngineChange, EngineSettings
from wattkeeper.domain.plan import RangeLever, Target
from wattkeeper.physics import kv, limits
from wattkeeper.planner import unused
from wattkeeper.planner.types import PlannerSettings, PlanRequest

_MEMORY_SLACK = 0.05
"""Share of GPU memory that a KV cache set in bytes may take beyond what the profile leaves for it."""


class Power(NamedTuple):
    """Limits of one GPU; None: the card's default. A tuple, as thousands are hashed per plan."""

    cap_watts: float | None = None
    clock_mhz: float | None = None

    def deeper_than(self, other: "Power") -> bool:
        """True where either limit is below that of `other`."""
        return _value(self.cap_watts) < _value(other.cap_watts) or _value(self.clock_mhz) < _value(other.clock_mhz)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One set of engine arguments with what the models need of it; defaults are filled in."""

    settings: EngineSettings
    change: EngineChange
    """From the arguments in place to these; empty for those in place."""
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_capacity_tokens: float


@dataclass(frozen=True, kw_only=True)
class LeverSpace:
    """What may be chosen."""

    low: int
    high: int
    """Bounds of the replica count; `high` also within the free GPUs."""
    gpu_bound: bool
    """True where free GPUs, not the user's maximum, set `high`."""
    router_bound: bool
    """True where `high` is what the router uses: more replicas were seen without work."""
    full_power: Power
    caps_watts: tuple[float, ...]
    """Caps below full power, ascending."""
    clocks_mhz: tuple[float, ...]
    """Clock locks below full clock, ascending."""
    current: Target
    """What is in place, moved into the bounds."""
    engines: tuple[Engine, ...]
    """The arguments in place first, then those that a roll-out could bring."""

    @property
    def current_power(self) -> Power:
        """Power limits in place, moved into the bounds."""
        return Power(cap_watts=self.current.power_cap_watts, clock_mhz=self.current.clock_mhz)

    def coarse(self, points: int) -> list[Power]:
        """Full power and about `points` values of each lever, evenly spread, extremes included.

        The levers are taken one at a time: a GPU runs at the lower of its lock and the clock its cap leaves, so a pair
        of both does nothing that one of them does not do at the same load.
        """
        return list(_one_at_a_time(self.full_power, self.caps_watts, self.clocks_mhz, points))

    def fine(self, around: Power, points: int) -> list[Power]:
        """Values between `around` and its coarse neighbours on the lever that it uses, at most 2 * `points` per lever.

        Full power uses none, so that the top of every lever is looked at.
        """
        result = []
        if around.clock_mhz not in self.clocks_mhz:
            result += [
                Power(cap_watts=value, clock_mhz=self.full_power.clock_mhz)
                for value in _between(self.caps_watts, around.cap_watts, points)
            ]
        if around.cap_watts not in self.caps_watts:
            result += [
                Power(cap_watts=self.full_power.cap_watts, clock_mhz=value)
                for value in _between(self.clocks_mhz, around.clock_mhz, points)
            ]
        return result

    def every(self) -> list[Power]:
        """Full power and every value of each lever, one lever at a time."""
        return self.coarse(max(len(self.caps_watts), len(self.clocks_mhz)))

    def deepest(self) -> list[Power]:
        """Both levers together at their floors, for a service that does nothing."""
        if not self.caps_watts or not self.clocks_mhz:
            return []
        return [Power(cap_watts=self.caps_watts[0], clock_mhz=self.clocks_mhz[0])]


def lever_space(request: PlanRequest, settings: PlannerSettings) -> LeverSpace:
    """The levers of a request as its user, its GPUs and its timers allow."""
    low, high, gpu_bound = _replica_bounds(request)
    most_used = unused.most_replicas(request, settings)
    router_bound = most_used is not None and most_used < high
    if most_used is not None and router_bound:
        high, gpu_bound = max(low, most_used), False
    gpu, levers = request.profile.gpu, request.levers
    most = settings.grid_power_values
    cap, lock = (levers.power_cap, levers.clock_lock) if request.power_lever else (None, None)
    caps, full_cap = _range(cap, floor=gpu.min_cap_watts, default=gpu.tdp_watts, most=most)
    clocks, full_clock = _range(lock, floor=gpu.min_clock_mhz, default=gpu.max_clock_mhz, most=most)
    current = Target(
        replicas=min(max(request.current.replicas, low), high),
        power_cap_watts=_clip(request.current.power_cap_watts, caps, full_cap, gpu.tdp_watts),
        clock_mhz=_clip(request.current.clock_mhz, clocks, full_clock, gpu.max_clock_mhz),
        engine=request.current.engine,
    )
    return LeverSpace(
        low=low,
        high=high,
        gpu_bound=gpu_bound,
        router_bound=router_bound,
        full_power=Power(cap_watts=full_cap, clock_mhz=full_clock),
        caps_watts=caps,
        clocks_mhz=clocks,
        current=current,
        engines=_engines(request, settings),
    )


def rollout_open(request: PlanRequest) -> bool:
    """True where new engine arguments may be proposed now: allowed, interval over, every replica ready."""
    last = request.memory.last_rollout_seconds
    return (
        request.rollout_allowed
        and 0 < request.current.replicas <= request.ready_replicas
        and (last is None or request.now_seconds - last >= request.levers.rollout_min_interval_seconds)
    )


def _replica_bounds(request: PlanRequest) -> tuple[int, int, bool]:
    lever = request.levers.replicas
    if lever is None:
        return request.current.replicas, request.current.replicas, False
    low = max(1, lever.minimum)
    high = max(low, lever.maximum)
    if request.free_gpus is None:
        return low, high, False
    attainable = request.current.replicas + max(0, request.free_gpus) // request.profile.gpus_per_replica
    return low, max(low, min(high, attainable)), attainable < high


def _range(
    lever: RangeLever | None, *, floor: float, default: float, most: int
) -> tuple[tuple[float, ...], float | None]:
    """Values below full power, ascending, and full power: None (the default) unless the user's bound is lower."""
    if lever is None:
        return (), None
    values = sorted({min(max(value, floor), default) for value in lever.grid()})
    full = None if values[-1] >= default else values[-1]
    return tuple(_spread(tuple(value for value in values if value < values[-1]), most)), full


def _clip(value: float | None, values: tuple[float, ...], full: float | None, default: float) -> float | None:
    """A limit in place, moved between the lever's floor and full power; without a lever there is none."""
    if value is None or not values or value >= (default if full is None else full):
        return full
    return max(value, values[0])


@functools.lru_cache(maxsize=1024)
def _one_at_a_time(
    full: Power, caps_watts: tuple[float, ...], clocks_mhz: tuple[float, ...], points: int
) -> tuple[Power, ...]:
    """Services of a fleet share their levers, so that this is worth keeping."""
    caps = (Power(cap_watts=value, clock_mhz=full.clock_mhz) for value in _spread(caps_watts, points))
    clocks = (Power(cap_watts=full.cap_watts, clock_mhz=value) for value in _spread(clocks_mhz, points))
    return (full, *caps, *clocks)


def _value(limit: float | None) -> float:
    return math.inf if limit is None else limit


def _spread(values: tuple[float, ...], points: int) -> list[float]:
    if len(values) <= points:
        return list(values)
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, points).round().astype(int))]


def _between(values: tuple[float, ...], around: float | None, points: int) -> list[float]:
    """Values between `around` (its place is above all where it is no value) and the coarse values next to it."""
    coarse = [values.index(value) for value in _spread(values, points)] + [len(values)]
    at = values.index(around) if around in values else len(values)
    below = max((i for i in coarse if i < at), default=at)
    above = min((i for i in coarse if i > at), default=at)
    return _spread(values[below + 1 : at], points) + _spread(values[at + 1 : above], points)


def _engines(request: PlanRequest, settings: PlannerSettings) -> tuple[Engine, ...]:
    in_place = request.current.engine
    options = [in_place]
    if rollout_open(request):
        options += [
            option
            for option in _engine_options(request)
            if option != in_place and _starts(option, request) and not _known_bad(option, request.bad_engines)
        ]
        options.sort(key=lambda option: len(_difference(in_place, option).as_dict()))
    return tuple(_engine(option, request) for option in options[: settings.grid_engine_options])


def _engine(option: EngineSettings, request: PlanRequest) -> Engine:
    in_place, profile = request.current.engine, request.profile
    live = kv.capacity_tokens(profile, in_place, request.observation.kv_cache)
    if option == in_place:
        capacity = live
    else:
        capacity = kv.capacity_tokens(profile, option, None)
        nominal = kv.capacity_tokens(profile, in_place, None)
        if option.kv_cache_memory_bytes is None and nominal > 0:
            capacity *= live / nominal
        capacity *= kv.dtype_bytes(in_place.kv_cache_dtype) / kv.dtype_bytes(option.kv_cache_dtype)
    admitted = limits.max_num_seqs(option, profile.gpu)
    return Engine(
        settings=option,
        change=_difference(in_place, option),
        max_num_seqs=min(admitted, option.max_num_active_seqs or admitted),
        max_num_batched_tokens=limits.max_num_batched_tokens(option, profile.gpu),
        kv_capacity_tokens=capacity,
    )


def _engine_options(request: PlanRequest) -> list[EngineSettings]:
    """Every combination of the lever's values with the arguments in place. KV memory in bytes overrides utilization."""
    lever, in_place = request.levers.engine, request.current.engine
    utilization = () if lever.kv_cache_memory_bytes else lever.gpu_memory_utilization
    return [
        in_place.with_change(
            EngineChange(
                max_num_batched_tokens=batched,
                max_num_seqs=seqs,
                kv_cache_memory_bytes=kv_bytes,
                gpu_memory_utilization=share,
                kv_cache_dtype=dtype,
            )
        )
        for batched, seqs, kv_bytes, share, dtype in itertools.product(
            lever.max_num_batched_tokens or (None,),
            lever.max_num_seqs or (None,),
            lever.kv_cache_memory_bytes or (None,),
            utilization or (None,),
            lever.kv_cache_dtype or (None,),
        )
    ]


def _starts(engine: EngineSettings, request: PlanRequest) -> bool:
    seqs = limits.max_num_seqs(engine, request.profile.gpu)
    batched = limits.max_num_batched_tokens(engine, request.profile.gpu)
    if batched < seqs or seqs < (engine.max_num_active_seqs or 0):
        return False
    length = engine.max_model_len or request.profile.max_model_len
    if engine.enable_chunked_prefill is False and (length is None or batched < length):
        return False
    if engine.kv_cache_memory_bytes is not None:
        room = request.profile.kv_capacity_tokens * request.profile.kv_bytes_per_token
        return engine.kv_cache_memory_bytes <= room + _MEMORY_SLACK * request.profile.gpu.memory_bytes
    return True


def _known_bad(engine: EngineSettings, bad: tuple[EngineChange, ...]) -> bool:
    return any(change and engine.with_change(change) == engine for change in bad)


def _difference(before: EngineSettings, after: EngineSettings) -> EngineChange:
    names = EngineChange().__dict__
    return EngineChange(
        **{name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}
    )
