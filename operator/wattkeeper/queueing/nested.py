"""Nested WAIT: thresholds by decode progress for requests whose answer lengths are not known in advance.

Source: Ao, Luo, Simchi-Levi, Wang, arXiv 2504.11320, Algorithm 2. With answer lengths l'_1 < ... < l'_m, segment k
holds requests that have decoded more than l'_{k-1} and at most l'_k tokens; a share p_k of those that enter segment
k - 1 goes on into segment k. With delta_k stages of mean progress s_k per segment (delta_1 = l'_1 + 1 stages from 0,
else l'_k - l'_{k-1}) the thresholds n_1 ... n_m must satisfy

    dT(n) < n_1 / sum(lambda_j)                                                    (Cadence)
    p_k < n_k / n_{k-1} < 1                          for k = 2 .. m                (Flow, Nesting)
    M(n) + sum_{k >= 2} (l + l'_{k-1}) (n_k + ln(m (1 + T / d0) / eps) / theta_k) <= C      (KvMemory)

for no overflow with probability 1 - eps over a horizon T; theta_k > 0 is the root of
exp(-theta n_k) (1 - p_k + p_k exp(theta))^{n_{k-1}} = 1, which Hoeffding's bound puts above
8 (n_k - n_{k-1} p_k) / n_{k-1}. Prompts that differ enter as their mean over the classes that a segment sees, or as the
largest of them.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing.fluid import Times
from wattkeeper.queueing.mix import Mix
from wattkeeper.queueing.thresholds import precheck
from wattkeeper.queueing.verdict import Cause, Condition, failures

_NEWTON_STEPS = 60
_MOST_TRIES = 10_000
_LARGEST_RATIO = 0.99


class PromptRule(enum.Enum):
    """How prompts of different lengths enter a segment."""

    MEAN = "Mean"
    LARGEST = "Largest"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One stretch of decode progress and its threshold."""

    from_tokens: float
    """l'_{k-1}: progress of those at its boundary."""
    to_tokens: float
    """l'_k."""
    stages: float
    """delta_k: iterations spent in it."""
    prompt_tokens: float
    continue_probability: float
    """p_k; 1 for the first segment."""
    threshold: int
    theta: float
    """theta_k; inf for the first segment and where the boundary queue is bounded in any case (n_k >= n_{k-1}); 0 where
    it is not bounded at all (n_k <= p_k n_{k-1})."""
    theta_bound: float
    """Hoeffding's lower bound on theta_k."""
    memory_tokens: float
    """n_k (l + s_k) delta_k."""
    buffer_tokens: float
    """Room kept free for the queue at its boundary."""


@dataclass(frozen=True, kw_only=True)
class NestedPlan:
    """Segments with their thresholds, and what became of the conditions."""

    cause: Cause
    segments: tuple[Segment, ...] = ()
    memory_tokens: float = math.inf
    """M(n)."""
    buffer_tokens: float = math.inf
    required_tokens: float = math.inf
    """M(n) and all buffers: what the KV memory must hold."""
    step_seconds: float = math.inf
    conditions: tuple[Condition, ...] = ()

    @property
    def satisfied(self) -> bool:
        """True where every condition holds."""
        return self.cause in (Cause.NONE, Cause.IDLE)

    @property
    def failures(self) -> tuple[Condition, ...]:
        """Conditions that do not hold, the worst first."""
        return failures(self.conditions)


def theta_roots(n: FloatArray, n_before: FloatArray, p: FloatArray) -> FloatArray:
    """theta_k for every segment; arrays of one shape. 0 where n <= p n_before, inf where n >= n_before.

    ln of the defining expression is convex in theta, zero at 0 and falling there, so Newton's method from a point right
    of the root comes down to it.
    """
    inside = (n > p * n_before) & (n < n_before)
    result = np.where(n >= n_before, np.inf, 0.0)
    if not inside.any():
        return result
    n, n_before, p = n[inside], n_before[inside], p[inside]
    theta = n_before * -np.log(p) / (n_before - n)
    for _ in range(_NEWTON_STEPS):
        grown = np.log(p) + theta
        total = np.logaddexp(np.log1p(-p), grown)
        change = (n_before * total - theta * n) / (n_before * np.exp(grown - total) - n)
        theta = theta - change
        if (np.abs(change) <= 1e-14 * theta).all():
            break
    result[inside] = theta
    return result


def merge(mix: Mix, cuts: Sequence[float]) -> Mix:
    """Classes merged into segments that end at `cuts` (ascending; the last at or beyond the longest answer).

    Rates add up, prompts average; an answer is taken to run to the end of its segment, which errs on the safe side.
    Segments that no answer ends in are left out. Raises ValueError for cuts that do not ascend or do not reach.
    """
    ends = np.asarray(cuts, dtype=np.float64)
    if not len(ends) or (np.diff(ends) <= 0).any() or ends[-1] < mix.decode_steps.max(initial=0.0):
        raise ValueError(f"cuts must ascend and reach the longest answer, not {list(cuts)}")
    at = np.searchsorted(ends, mix.decode_steps)
    rates = np.bincount(at, weights=mix.rates_per_second, minlength=len(ends)).astype(np.float64)
    kept = rates > 0
    mean = np.maximum(rates, 1e-300)
    prompts = np.bincount(at, weights=mix.rates_per_second * mix.prompt_tokens, minlength=len(ends)) / mean
    cached = np.bincount(at, weights=mix.rates_per_second * mix.cached_tokens, minlength=len(ends)) / mean
    return Mix(
        rates_per_second=rates[kept], prompt_tokens=prompts[kept], decode_steps=ends[kept], cached_tokens=cached[kept]
    )


def check_nested(
    mix: Mix,
    iteration: IterationCoefficients,
    *,
    kv_capacity_tokens: float,
    thresholds: Sequence[float],
    horizon_seconds: float,
    overflow_probability: float,
    prompt_rule: PromptRule = PromptRule.MEAN,
) -> NestedPlan:
    """The conditions of Nested WAIT for given thresholds, one per distinct answer length (shortest first).

    Classes of one answer length count as one, classes without arrivals as none.
    """
    cause, ladder = _ladder(mix, iteration, kv_capacity_tokens, prompt_rule)
    if ladder is None:
        return NestedPlan(cause=cause)
    counts = np.asarray(thresholds, dtype=np.float64)
    if counts.shape != ladder.ends.shape:
        return NestedPlan(cause=Cause.SHAPES_DISAGREE)
    usable = np.isfinite(counts).all() and (counts >= 1).all() and (counts == np.round(counts)).all()
    if not usable or not horizon_seconds > 0 or not 0.0 < overflow_probability < 1.0:
        return NestedPlan(cause=Cause.THRESHOLDS_INVALID)
    return _plan(cause, ladder, counts, kv_capacity_tokens, horizon_seconds, overflow_probability)


def nested_thresholds(
    mix: Mix,
    iteration: IterationCoefficients,
    *,
    kv_capacity_tokens: float,
    horizon_seconds: float,
    overflow_probability: float,
    margin: float = 0.05,
    prompt_rule: PromptRule = PromptRule.MEAN,
) -> NestedPlan:
    """The smallest thresholds with n_k / n_{k-1} near p_k + margin that meet cadence, flow and nesting, checked.

    Where none fits the KV memory, the first plan that does not is returned with its failed conditions.
    """
    cause, ladder = _ladder(mix, iteration, kv_capacity_tokens, prompt_rule)
    if ladder is None or cause not in (Cause.NONE, Cause.IDLE):
        return NestedPlan(cause=cause)
    if not horizon_seconds > 0 or not 0.0 < overflow_probability < 1.0 or not 0.0 < margin < 1.0:
        return NestedPlan(cause=Cause.THRESHOLDS_INVALID)
    first = max(1.0, math.ceil(ladder.total_rate * ladder.fixed / (1.0 - ladder.least_rho)))
    counts = _descend(first, ladder.continues, margin)
    ratios = np.append(1.0, np.minimum(ladder.continues[1:] + margin, _LARGEST_RATIO))
    reachable = ladder.total_rate * float(np.cumprod(ratios) @ ladder.work) < 1.0
    for _ in range(_MOST_TRIES):
        cadence = not reachable or ladder.step_seconds(counts) < counts[0] / ladder.total_rate
        if (cadence and _nests(counts, ladder.continues)) or counts @ ladder.kv_integral > kv_capacity_tokens:
            break
        counts = _descend(counts[0] + 1.0, ladder.continues, margin)
    return _plan(cause, ladder, counts, kv_capacity_tokens, horizon_seconds, overflow_probability)


def in_service_caps(
    stages: Sequence[float], ratios: Sequence[float], *, total: float
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(thresholds n_k, rounded caps per segment) that share a limit on requests in service among segments.

    With `stages` delta_k per segment and `ratios` n_k / n_{k-1} from the second on, n_1 follows from
    sum(delta_k n_k) = total; segment k may hold delta_k n_k (arXiv 2504.11320, section 6).
    """
    relative = np.cumprod([1.0, *ratios])
    counts = relative * total / float(np.dot(relative, stages))
    return tuple(counts.tolist()), tuple(int(cap) for cap in np.round(counts * np.asarray(stages)))


@dataclass(frozen=True, kw_only=True)
class _Ladder:
    """Segments before thresholds are chosen; arrays of shape (m,)."""

    ends: FloatArray
    starts: FloatArray
    stages: FloatArray
    prompts: FloatArray
    continues: FloatArray
    work: FloatArray
    """Seconds that one request per stage adds to a step."""
    kv_integral: FloatArray
    total_rate: float
    fixed: float

    def step_seconds(self, counts: FloatArray) -> float:
        return self.fixed + float(counts @ self.work)

    @property
    def least_rho(self) -> float:
        """Work per second where n_k / n_{k-1} = p_k exactly."""
        return min(self.total_rate * float(np.cumprod(self.continues) @ self.work), 1.0 - 1e-9)


def _ladder(
    mix: Mix, iteration: IterationCoefficients, kv_capacity_tokens: float, prompt_rule: PromptRule
) -> tuple[Cause, _Ladder | None]:
    cause, _ = precheck(mix, iteration, kv_capacity_tokens)
    if cause not in (Cause.NONE, Cause.KV_MEMORY, Cause.OVERLOAD):
        return cause, None
    live = mix.take(mix.rates_per_second > 0)
    ends, at = np.unique(live.decode_steps, return_inverse=True)
    rates = np.bincount(at, weights=live.rates_per_second)

    def seen(values: FloatArray) -> FloatArray:
        """Mean, or largest, of a quantity over the classes that each segment sees."""
        if prompt_rule is PromptRule.LARGEST:
            largest = np.zeros(len(ends))
            np.maximum.at(largest, at, values)
            return np.asarray(np.maximum.accumulate(largest[::-1])[::-1])
        sums = np.bincount(at, weights=live.rates_per_second * values)
        return np.asarray(np.cumsum(sums[::-1])[::-1] / np.cumsum(rates[::-1])[::-1])

    reach = np.cumsum(rates[::-1])[::-1]
    starts = np.append(0.0, ends[:-1])
    stages = ends - starts
    prompts = seen(live.prompt_tokens)
    middle = 0.5 * (starts + 1.0 + ends)
    times = Times.of(iteration)
    reads = stages * (prompts + middle)
    work = float(times.per_decode) * stages + float(times.per_kv_token) * reads
    prefill = float(times.per_token) * seen(live.computed_tokens) + float(times.per_product) * seen(live.products)
    first = np.arange(len(ends)) == 0
    return cause, _Ladder(
        ends=ends,
        starts=starts,
        stages=stages + first,
        prompts=prompts,
        continues=np.append(1.0, reach[1:] / reach[:-1]),
        work=work + np.where(first, prefill, 0.0),
        kv_integral=reads + np.where(first, prompts, 0.0),
        total_rate=float(rates.sum()),
        fixed=float(times.fixed),
    )


def _plan(
    cause: Cause,
    ladder: _Ladder,
    counts: FloatArray,
    kv_capacity_tokens: float,
    horizon_seconds: float,
    overflow_probability: float,
) -> NestedPlan:
    before = np.append(np.inf, counts[:-1])
    theta, bound = np.full(len(counts), np.inf), np.full(len(counts), np.inf)
    theta[1:] = theta_roots(counts[1:], before[1:], ladder.continues[1:])
    bound[1:] = 8.0 * np.maximum(counts[1:] - before[1:] * ladder.continues[1:], 0.0) / before[1:]
    chances = math.log(len(counts)) + math.log1p(horizon_seconds / ladder.fixed) - math.log(overflow_probability)
    # Where n_k >= n_{k-1} a boundary queue below n_k grows by at most n_{k-1} before its segment runs.
    sure = np.isinf(theta)
    with np.errstate(divide="ignore"):
        queue = counts + np.where(sure, np.where(np.isinf(before), 0.0, before), chances / theta)
    buffers = np.where(np.isinf(before), 0.0, (ladder.prompts + ladder.starts) * queue)
    memory = counts * ladder.kv_integral
    step_seconds = ladder.step_seconds(counts)
    required = float(memory.sum() + buffers.sum())
    conditions = _conditions(ladder, counts, step_seconds, required, kv_capacity_tokens)
    if failures(conditions) and cause is Cause.NONE:
        cause = Cause.CONDITION_FAILS
    return NestedPlan(
        cause=cause,
        segments=tuple(
            Segment(
                from_tokens=float(ladder.starts[k]),
                to_tokens=float(ladder.ends[k]),
                stages=float(ladder.stages[k]),
                prompt_tokens=float(ladder.prompts[k]),
                continue_probability=float(ladder.continues[k]),
                threshold=int(counts[k]),
                theta=float(theta[k]),
                theta_bound=float(bound[k]),
                memory_tokens=float(memory[k]),
                buffer_tokens=float(buffers[k]),
            )
            for k in range(len(counts))
        ),
        memory_tokens=float(memory.sum()),
        buffer_tokens=float(buffers.sum()),
        required_tokens=required,
        step_seconds=step_seconds,
        conditions=conditions,
    )


def _conditions(
    ladder: _Ladder, counts: FloatArray, step_seconds: float, required: float, kv_capacity_tokens: float
) -> tuple[Condition, ...]:
    found = [
        Condition(
            name="Cadence",
            statement="step time dT(n) < n_1 / sum of rates",
            value=step_seconds,
            bound=float(counts[0]) / ladder.total_rate,
            strict=True,
        )
    ]
    for k in range(1, len(counts)):
        ratio = float(counts[k] / counts[k - 1])
        found.append(
            Condition(
                name=f"Flow[{k + 1}]",
                statement=f"share that goes on p_{k + 1} < n_{k + 1} / n_{k}",
                value=float(ladder.continues[k]),
                bound=ratio,
                strict=True,
            )
        )
        found.append(
            Condition(name=f"Nesting[{k + 1}]", statement=f"n_{k + 1} / n_{k} < 1", value=ratio, bound=1.0, strict=True)
        )
    found.append(
        Condition(
            name="KvMemory",
            statement="M(n) and buffers <= KV capacity",
            value=required,
            bound=float(kv_capacity_tokens),
        )
    )
    return tuple(found)


def _descend(first: float, continues: FloatArray, margin: float) -> FloatArray:
    """Whole thresholds from n_1 down by ratios p_k + margin, each at least one more than what flows in."""
    counts = [first]
    for p in continues[1:]:
        ratio = min(p + margin, _LARGEST_RATIO)
        counts.append(max(math.floor(counts[-1] * p) + 1.0, min(math.ceil(counts[-1] * ratio), counts[-1] - 1.0)))
    return np.asarray(counts)


def _nests(counts: FloatArray, continues: FloatArray) -> bool:
    ratio = counts[1:] / counts[:-1]
    return bool(((ratio > continues[1:]) & (ratio < 1.0)).all())
