"""WAIT: admission thresholds for requests whose answer lengths are known, with the conditions they must meet.

Source: Ao, Luo, Simchi-Levi, Wang, arXiv 2504.11320, Algorithm 1. A class j joins a batch once n_j of its requests
wait; a batch then takes at most n_j requests of every stage of the classes that join. Thresholds must satisfy

    dT(n) = d0 + sum(n_j x_j) <= n_j / lambda_j   for every class        (Cadence)
    M* <= M(n) = sum(n_j w_j) <= C                                       (Inventory, KvMemory)

with x_j and w_j of `queueing.fluid`. Then no more than M(n) KV tokens are ever resident and nothing is evicted; the gap
to the fluid throughput falls with the square root of the horizon, and with the horizon itself where every cadence has
slack.

A launch may be a run of `stride` iterations (`scheduling.wait`; ours): stages are then that many tokens long, and

    dT(n) = stride d0 + sum(n_j x_j),    w_j = sum over coarse stages of what a request holds at the end of each.

The argument is that of the paper with launches for iterations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing import fluid
from wattkeeper.queueing.fluid import Limits, Times
from wattkeeper.queueing.mix import Load, Mix
from wattkeeper.queueing.verdict import ROUNDING, Cause, Condition, failures

_MOST_ROUNDS = 10_000


@dataclass(frozen=True, kw_only=True)
class WaitPlan:
    """Thresholds and what became of their conditions."""

    cause: Cause
    """NONE or IDLE: all conditions hold. CONDITION_FAILS: see `failures`. Else why there is nothing to check."""
    thresholds: tuple[int, ...] = ()
    """Per class; 0 for a class without arrivals."""
    memory_tokens: float = math.inf
    """M(n): the most KV tokens ever resident."""
    step_seconds: float = math.inf
    """dT(n): the longest launch; with stride 1 that is the longest iteration."""
    conditions: tuple[Condition, ...] = ()
    stride: int = 1
    """Iterations of a launch."""

    @property
    def satisfied(self) -> bool:
        """True where every condition holds."""
        return self.cause in (Cause.NONE, Cause.IDLE)

    @property
    def strict_slack(self) -> bool:
        """True where every cadence holds with room: latency then stays bounded however long it runs."""
        cadences = [each for each in self.conditions if each.name.startswith("Cadence")]
        return self.satisfied and all(each.excess < -ROUNDING for each in cadences)

    @property
    def failures(self) -> tuple[Condition, ...]:
        """Conditions that do not hold, the worst first."""
        return failures(self.conditions)


def class_work(mix: Mix, times: Times) -> FloatArray:
    """x_j: seconds of work of one request of each class; shape (J,). `times` must be scalars."""
    reads = mix.kv_integral - mix.prompt_tokens
    return np.asarray(
        times.per_token * mix.computed_tokens
        + times.per_decode * mix.decode_steps
        + times.per_kv_token * reads
        + times.per_product * mix.products
    )


def class_memory(mix: Mix, stride: int = 1) -> FloatArray:
    """w_j: KV tokens of one request of each class in every stage, as held at the end of the stage; shape (J,)."""
    if stride == 1:
        return mix.kv_integral
    answers = mix.decode_steps + 1.0
    full = np.floor(answers / stride)
    # At the end of coarse stage s a request holds its prompt and stride (s + 1) tokens, less the one sampled last.
    held = full * (mix.prompt_tokens - 1.0) + stride * full * (full + 1.0) / 2.0
    return np.asarray(held + np.where(answers > full * stride, mix.prompt_tokens + answers - 1.0, 0.0))


def precheck(mix: Mix, iteration: IterationCoefficients, kv_capacity_tokens: float) -> tuple[Cause, float]:
    """(why no thresholds can serve this mix, else NONE or IDLE; M*), from the fluid balance."""
    point = fluid.equilibrium(Load.of(mix), Times.of(iteration), Limits.of(kv_capacity_tokens=kv_capacity_tokens))
    return point.cause.item(), float(point.memory_tokens)


def check_wait(
    mix: Mix,
    iteration: IterationCoefficients,
    *,
    kv_capacity_tokens: float,
    thresholds: Sequence[float],
    stride: int = 1,
) -> WaitPlan:
    """The conditions of WAIT for given thresholds, one per class."""
    cause, fluid_memory = precheck(mix, iteration, kv_capacity_tokens)
    if cause not in (Cause.NONE, Cause.IDLE, Cause.KV_MEMORY, Cause.OVERLOAD):
        return WaitPlan(cause=cause)
    counts = np.asarray(thresholds, dtype=np.float64)
    if counts.shape != mix.rates_per_second.shape:
        return WaitPlan(cause=Cause.SHAPES_DISAGREE)
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts != np.round(counts)).any():
        return WaitPlan(cause=Cause.THRESHOLDS_INVALID)
    times = Times.of(iteration)
    step_seconds = float(stride * times.fixed + counts @ class_work(mix, times))
    memory = float(counts @ class_memory(mix, stride))
    found = [
        Condition(
            name=f"Cadence[{index}]",
            statement=f"step time dT(n) <= n/lambda of class {index}",
            value=step_seconds,
            bound=float(count / rate),
        )
        for index, (count, rate) in enumerate(zip(counts, mix.rates_per_second, strict=True))
        if rate > 0
    ]
    found.append(
        Condition(
            name="Inventory",
            statement="fluid inventory M* <= M(n)",
            value=fluid_memory,
            bound=memory,
        )
    )
    found.append(
        Condition(name="KvMemory", statement="M(n) <= KV capacity", value=memory, bound=float(kv_capacity_tokens))
    )
    conditions = tuple(found)
    if failures(conditions):
        cause = cause if cause in (Cause.KV_MEMORY, Cause.OVERLOAD) else Cause.CONDITION_FAILS
    return WaitPlan(
        cause=cause,
        thresholds=tuple(int(count) for count in counts),
        memory_tokens=memory,
        step_seconds=step_seconds,
        conditions=conditions,
        stride=stride,
    )


def wait_thresholds(
    mix: Mix, iteration: IterationCoefficients, *, kv_capacity_tokens: float, stride: int = 1
) -> WaitPlan:
    """The smallest thresholds that meet the cadence of every class, with all conditions checked.

    The cadences are monotone in n, so rounding up from the fluid inventory until nothing moves ends at the least
    solution; where KV memory is too small for it the plan says so (`KvMemory` fails).
    """
    cause, _ = precheck(mix, iteration, kv_capacity_tokens)
    if cause not in (Cause.NONE, Cause.IDLE):
        return WaitPlan(cause=cause)
    times = Times.of(iteration)
    work, rates = class_work(mix, times), mix.rates_per_second
    fixed, held = float(stride * times.fixed), class_memory(mix, stride)
    step_seconds = float(fixed / (1.0 - rates @ work))
    counts = np.zeros_like(rates)
    for _ in range(_MOST_ROUNDS):
        raised = np.maximum(counts, np.ceil(rates * step_seconds * (1.0 - ROUNDING)))
        if (raised == counts).all() or raised @ held > kv_capacity_tokens:
            counts = raised
            break
        counts = raised
        step_seconds = fixed + float(counts @ work)
    return check_wait(mix, iteration, kv_capacity_tokens=kv_capacity_tokens, thresholds=counts.tolist(), stride=stride)
