"""The scheduling policy that the fluid equilibrium of a mix calls for, with the conditions of its guarantees checked.

Here and not in `wattkeeper.scheduling`, because that room is loaded into engines and knows no queueing model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing import nested, thresholds
from wattkeeper.queueing.mix import Mix
from wattkeeper.queueing.nested import NestedPlan
from wattkeeper.queueing.thresholds import WaitPlan
from wattkeeper.scheduling.nested import NestedWait, WaitSegment
from wattkeeper.scheduling.wait import Wait, WaitClass


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A policy, if there is one whose guarantees hold, and the conditions that say so."""

    policy: Wait | NestedWait | None
    """None: a condition fails (`plan.failures`), or there is nothing to schedule (`plan.cause`)."""
    plan: WaitPlan | NestedPlan


def choose(
    mix: Mix,
    iteration: IterationCoefficients,
    *,
    kv_capacity_tokens: float,
    lengths_known: bool,
    horizon_seconds: float = 3600.0,
    overflow_probability: float = 1e-3,
    cuts: Sequence[float] | None = None,
    longest_stride: int = 1,
) -> Choice:
    """WAIT where answer lengths are known, else nested WAIT, with the least thresholds that meet all conditions.

    Where one request in every stage of WAIT is more than memory holds, stages of up to `longest_stride` tokens are
    tried, the shortest first; 1 keeps to the paper.

    `horizon_seconds` and `overflow_probability` size the buffers of nested WAIT; `cuts` are the decode steps at which
    its segments end (merging classes between them), one per answer length where left out.
    """
    if lengths_known:
        plan = _plan(mix, iteration, kv_capacity_tokens, longest_stride)
        return Choice(policy=_wait(mix, plan) if plan.satisfied else None, plan=plan)
    merged = mix if cuts is None else nested.merge(mix, cuts)
    ladder = nested.nested_thresholds(
        merged,
        iteration,
        kv_capacity_tokens=kv_capacity_tokens,
        horizon_seconds=horizon_seconds,
        overflow_probability=overflow_probability,
        prompt_rule=nested.PromptRule.LARGEST,
    )
    return Choice(policy=_nested(ladder) if ladder.satisfied and ladder.segments else None, plan=ladder)


def _plan(mix: Mix, iteration: IterationCoefficients, kv_capacity_tokens: float, longest_stride: int) -> WaitPlan:
    """The plan of the shortest stride that meets all conditions, else that of stride 1."""
    plans = (
        thresholds.wait_thresholds(mix, iteration, kv_capacity_tokens=kv_capacity_tokens, stride=stride)
        for stride in range(1, max(1, longest_stride) + 1)
    )
    first = next(plans)
    return first if first.satisfied else next((plan for plan in plans if plan.satisfied), first)


def _wait(mix: Mix, plan: WaitPlan) -> Wait | None:
    classes = tuple(
        WaitClass(prompt_tokens=int(prompt), output_tokens=int(steps) + 1, threshold=threshold)
        for prompt, steps, threshold in zip(mix.prompt_tokens, mix.decode_steps, plan.thresholds, strict=True)
        if threshold
    )
    return Wait(classes=classes, stride=plan.stride) if classes else None


def _nested(plan: NestedPlan) -> NestedWait:
    return NestedWait(
        segments=tuple(
            WaitSegment(to_output_tokens=int(segment.to_tokens) + 1, threshold=segment.threshold)
            for segment in plan.segments
        )
    )
