"""What makes one state of a service draw other watts than another: shares of ln(watts / reference watts).

Watts are taken as a function of independent causes, each in one of the four dimensions. Shares of dimensions are exact
Shapley values (Shapley 1953): all 16 ways to take some dimensions from the state and the others from the reference are
priced. Inside a dimension the share is split by the same rule (Owen values, Owen 1977), so that causes add up to their
dimension and dimensions to ln(watts / reference watts) exactly. Only prices are asked for: any model will do.

What follows from others is no cause: resident tokens, prompt tokens of an iteration and its time are worked out anew
for each mixture, from the physical step model. What a state has beyond that is a cause of its own, so that both ends
are met exactly. Batch and busy share count as they are: that fewer replicas lead to a larger batch is shown
as Scheduling, that there are fewer GPUs as System.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy.factors import Dimension
from wattkeeper.energy.points import OperatingPoints
from wattkeeper.physics import power, step
from wattkeeper.physics.profile import ServingProfile

DIMENSIONS = tuple(Dimension)
_Item = TypeVar("_Item")
_TINY = 1e-12
_DIGITS = 9


@dataclass(frozen=True, kw_only=True)
class State:
    """N states of services that run one profile; arrays are (N,)."""

    points: OperatingPoints
    busy: FloatArray
    """Share of time an iteration runs, 0..1."""
    replicas: FloatArray

    def watts(self, busy_watts: FloatArray) -> FloatArray:
        """Of all GPUs, from watts per GPU while iterating."""
        profile = self.points.profile
        idle = np.minimum(profile.energy.idle_watts, self.points.limit_watts)
        return np.asarray(
            self.replicas * profile.gpus_per_replica * (self.busy * busy_watts + (1.0 - self.busy) * idle)
        )


Watts = Callable[[Sequence[State]], Sequence[FloatArray]]
"""Prices states: watts of all GPUs, (N,) for each state asked."""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One independent input of the watts."""

    name: str
    dimension: Dimension
    unit: str
    description: str


_KV, _SCHEDULING, _SYSTEM, _WORKLOAD = DIMENSIONS
CAUSES: tuple[Cause, ...] = tuple(
    Cause(name=name, dimension=dimension, unit=unit, description=description)
    for name, dimension, unit, description in (
        ("kv_bytes_per_token", _KV, "bytes", "KV-cache bytes of one token"),
        ("kv_capacity_tokens", _KV, "tokens", "what the KV cache of a replica holds"),
        ("kv_residency_ratio", _KV, "1", "resident tokens over what lengths and batch imply"),
        ("batch", _SCHEDULING, "sequences", "sequences decoding together"),
        ("prefill_ratio", _SCHEDULING, "1", "prompt tokens per iteration over what lengths and batch imply"),
        ("step_ratio", _SCHEDULING, "1", "iteration time over that of the physical step model"),
        ("busy_share", _SCHEDULING, "1", "share of time an iteration runs"),
        ("deployment", _SYSTEM, "", "model, GPU and GPUs per replica"),
        ("replicas", _SYSTEM, "1", "replicas of the service"),
        ("clock_ratio", _SYSTEM, "1", "effective GPU clock (lock, or what a cap leaves) over its highest"),
        ("power_limit", _SYSTEM, "1", "power limit over the rated power"),
        ("prompt_tokens", _WORKLOAD, "tokens", "prompt tokens computed per request"),
        ("output_tokens", _WORKLOAD, "tokens", "output tokens per request"),
        ("multimodal", _WORKLOAD, "1", "1 where requests carry images or video"),
    )
)
NAMES = tuple(cause.name for cause in CAUSES)
_DEPLOYMENT = NAMES.index("deployment")


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """Shares of ln(watts / reference watts) for N states."""

    watts: FloatArray
    """(N,)."""
    reference_watts: FloatArray
    """(N,)."""
    by_cause: FloatArray
    """(N, len(CAUSES)); a row adds up to ln(watts / reference watts)."""
    interactions: FloatArray
    """(N, 4, 4), symmetric, zero diagonal: Shapley interaction index (Grabisch and Roubens 1999) of two dimensions, in
    ln(watts). Positive: together they add more than one by one."""

    @property
    def by_dimension(self) -> FloatArray:
        """(N, 4), in the order of `DIMENSIONS`."""
        return np.column_stack([self.by_cause[:, columns(dimension)].sum(axis=1) for dimension in DIMENSIONS])


def columns(dimension: Dimension) -> list[int]:
    """Columns of `CAUSES` that belong to a dimension."""
    return [index for index, cause in enumerate(CAUSES) if cause.dimension is dimension]


def contributions(reference: State, state: State, watts: Watts) -> Contributions:
    """What moves the watts from the reference to the state, row by row; both need as many rows.

    Asks `watts` once, for all mixtures. Raises ValueError: other numbers of rows, or watts that are not positive.
    """
    if len(reference.busy) != len(state.busy):
        raise ValueError(f"{len(reference.busy)} reference rows for {len(state.busy)} states: give as many of each")
    ends = _values(reference), _values(state)
    profiles = reference.points.profile, state.points.profile
    moved = frozenset(index for index in range(len(NAMES)) if not np.array_equal(ends[0][index], ends[1][index]))
    if profiles[0] != profiles[1]:
        moved |= {_DEPLOYMENT}
    groups = [sorted(moved.intersection(columns(dimension))) for dimension in DIMENSIONS]
    asked = sorted({frozenset[int](), moved, *_outer(groups), *_inner(groups)}, key=sorted)
    # The two ends are priced as they were given, not as they are put together again.
    given = {moved: state, frozenset[int](): reference}
    mixtures = [
        given[taken]
        if taken in given
        else _state(profiles[_DEPLOYMENT in taken], [ends[index in taken][index] for index in range(len(NAMES))])
        for taken in asked
    ]
    prices = dict(zip(asked, map(np.asarray, watts(mixtures)), strict=True))
    bad = [taken for taken, price in prices.items() if not (np.isfinite(price) & (price > 0)).all()]
    if bad:
        names = ", ".join(NAMES[index] for index in sorted(bad[0])) or "nothing"
        raise ValueError(f"watts that are not positive where {names} is taken from the state: no logarithm of them")
    logs = {taken: np.log(price) for taken, price in prices.items()}
    by_cause = np.zeros((len(state.busy), len(CAUSES)))
    for number, group in enumerate(groups):
        for cause in group:
            by_cause[:, cause] = _owen(logs, groups, number, cause)
    return Contributions(
        watts=prices[moved],
        reference_watts=prices[frozenset()],
        by_cause=by_cause,
        interactions=_interactions(logs, groups, len(state.busy)),
    )


def _values(state: State) -> list[FloatArray]:
    """The causes of a state, in the order of `CAUSES`; the profile stands for the deployment."""
    points, profile = state.points, state.points.profile
    batch = np.maximum(points.batch, _TINY)
    kv_implied, prefill_implied = _implied(batch, points.prompt_tokens, points.output_tokens)
    known = np.isfinite(points.step_seconds)
    values = {
        "kv_bytes_per_token": np.full_like(batch, profile.kv_bytes_per_token * profile.gpus_per_replica),
        "kv_capacity_tokens": points.kv_capacity_tokens,
        "kv_residency_ratio": points.kv_tokens / kv_implied,
        "batch": batch,
        "prefill_ratio": points.prefill_tokens / prefill_implied,
        "step_ratio": np.where(known, points.step_seconds / _step_seconds(points), 1.0),
        "busy_share": state.busy,
        "deployment": np.zeros_like(batch),
        "replicas": state.replicas,
        "clock_ratio": points.clock_ratio,
        "power_limit": points.limit_watts / profile.gpu.tdp_watts,
        "prompt_tokens": points.prompt_tokens,
        "output_tokens": points.output_tokens,
        "multimodal": points.multimodal,
    }
    # Rounded, so that the last bits of a ratio are not taken for a difference.
    return [np.round(values[name], _DIGITS) if name.endswith("_ratio") else values[name] for name in NAMES]


def _state(profile: ServingProfile, values: Sequence[FloatArray]) -> State:
    """The state of a profile and causes: the way back of `_values`."""
    of = dict(zip(NAMES, values, strict=True))
    kv_implied, prefill_implied = _implied(of["batch"], of["prompt_tokens"], of["output_tokens"])
    points = OperatingPoints(
        profile=_with_kv_bytes(profile, float(of["kv_bytes_per_token"][0])),
        batch=of["batch"],
        prefill_tokens=of["prefill_ratio"] * prefill_implied,
        kv_tokens=of["kv_residency_ratio"] * kv_implied,
        step_seconds=np.ones_like(of["batch"]),
        clock_ratio=of["clock_ratio"],
        limit_watts=of["power_limit"] * profile.gpu.tdp_watts,
        kv_capacity_tokens=of["kv_capacity_tokens"],
        prompt_tokens=of["prompt_tokens"],
        output_tokens=of["output_tokens"],
        multimodal=of["multimodal"],
    )
    points = replace(points, step_seconds=_step_seconds(points) * of["step_ratio"])
    return State(points=points, busy=of["busy_share"], replicas=of["replicas"])


def _implied(batch: FloatArray, prompt: FloatArray, output: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Resident tokens and prompt tokens per iteration of a steady batch (see `points.closed_loop`)."""
    return batch * (prompt + output / 2), batch * prompt / output


def _step_seconds(points: OperatingPoints) -> FloatArray:
    """Of the physical step model, with what the power limit adds."""
    work = {"prefill_tokens": points.prefill_tokens, "kv_tokens": points.kv_tokens, "decode_sequences": points.batch}
    seconds = step.step_seconds(
        points.profile.iteration,
        attention_products=points.prefill_tokens * points.prompt_tokens / 2,
        clock_ratio=points.clock_ratio,
        **work,
    )
    joules = power.step_joules(points.profile, step_seconds=seconds, clock_ratio=points.clock_ratio, **work)
    return power.held_step_seconds(
        points.profile, power_cap_watts=points.limit_watts, joules=joules, step_seconds=seconds
    )


def _with_kv_bytes(profile: ServingProfile, kv_bytes: float) -> ServingProfile:
    """The profile with another size of a cached token (over all GPUs): reads take time and energy in proportion."""
    own = profile.kv_bytes_per_token * profile.gpus_per_replica
    if kv_bytes == own:
        return profile
    ratio = kv_bytes / own
    iteration, energy = profile.iteration, profile.energy
    return replace(
        profile,
        kv_bytes_per_token=profile.kv_bytes_per_token * ratio,
        iteration=replace(iteration, dkv_seconds_per_kv_token=iteration.dkv_seconds_per_kv_token * ratio),
        energy=replace(energy, ekv_joules_per_kv_token=energy.ekv_joules_per_kv_token * ratio),
    )


def _outer(groups: Sequence[Sequence[int]]) -> Iterator[frozenset[int]]:
    """Whole dimensions, in all 16 ways."""
    for chosen in _subsets(groups):
        yield frozenset(itertools.chain.from_iterable(chosen))


def _inner(groups: Sequence[Sequence[int]]) -> Iterator[frozenset[int]]:
    """Parts of one dimension beside whole others."""
    for number, group in enumerate(groups):
        others = [each for index, each in enumerate(groups) if index != number]
        for chosen, part in itertools.product(_subsets(others), _subsets(group)):
            yield frozenset([*itertools.chain.from_iterable(chosen), *part])


def _subsets(items: Sequence[_Item]) -> list[tuple[_Item, ...]]:
    return [chosen for size in range(len(items) + 1) for chosen in itertools.combinations(items, size)]


def _weight(size: int, count: int) -> float:
    """Share of orders of `count` players in which exactly `size` given others come before a given one."""
    return math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)


def _owen(
    logs: Mapping[frozenset[int], FloatArray], groups: Sequence[Sequence[int]], number: int, cause: int
) -> FloatArray:
    others = [each for index, each in enumerate(groups) if index != number]
    rest = [each for each in groups[number] if each != cause]
    total = np.zeros_like(logs[frozenset()])
    for chosen in _subsets(others):
        for part in _subsets(rest):
            before = frozenset([*itertools.chain.from_iterable(chosen), *part])
            weight = _weight(len(chosen), len(groups)) * _weight(len(part), len(groups[number]))
            total += weight * (logs[before | {cause}] - logs[before])
    return total


def _interactions(logs: Mapping[frozenset[int], FloatArray], groups: Sequence[Sequence[int]], rows: int) -> FloatArray:
    found = np.zeros((rows, len(groups), len(groups)))
    for first, second in itertools.combinations(range(len(groups)), 2):
        others = [each for index, each in enumerate(groups) if index not in (first, second)]
        one, two = frozenset(groups[first]), frozenset(groups[second])
        total = np.zeros(rows)
        for chosen in _subsets(others):
            base = frozenset(itertools.chain.from_iterable(chosen))
            difference = logs[base | one | two] - logs[base | one] - logs[base | two] + logs[base]
            total += _weight(len(chosen), len(groups) - 1) * difference
        found[:, first, second] = found[:, second, first] = total
    return found
