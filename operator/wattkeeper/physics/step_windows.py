"""What vLLM's own counters say about the mean engine step between two scrapes of one pod.

    decoding sequences per step  n = inter-token latencies counted / steps        (one per decoded sequence and step)
    prefill tokens per step      p = (iteration tokens - generated tokens - cached prompt tokens) / steps
    seconds per step             t = elapsed / steps           where n is so large that the engine never idled,
                                 t = sum / count of inter-token latency           below

The second form weighs steps by their decodes: with about Poisson occupancy a decode sees n others and itself, so one
sequence is added to n (and its share to the KV tokens). Below `LEAST_DECODES` many steps have no decode at all and the
series say too little about them; such windows are left out, each for a named reason.
"""

import enum
import math
from dataclasses import dataclass

LEAST_DECODES = 3.0
BUSY_DECODES = 6.0
"""Mean decodes per step from which idle time is negligible (a Poisson occupancy is empty 0.2 % of the time)."""
LEAST_STEPS = 20.0
LONGEST_STEP_SECONDS = 60.0


class WindowProblem(enum.Enum):
    """Why the time between two scrapes says nothing about the step time."""

    MISSING = "Missing"
    """A number is absent or not finite."""
    RESET = "Reset"
    """A counter fell: the engine restarted."""
    TOO_FEW_STEPS = "TooFewSteps"
    LIGHT_LOAD = "LightLoad"
    IDLED = "Idled"
    """No request ran at one of the scrapes."""
    PREEMPTED = "Preempted"
    """Latencies hold waits for recomputation."""
    INCONSISTENT = "Inconsistent"
    """More decodes than tokens, or an impossible step time: series of different engines or versions."""


@dataclass(frozen=True, kw_only=True)
class EngineSample:
    """One scrape of one engine: counters since its start, and gauges."""

    time_seconds: float
    inter_token_seconds_sum: float
    inter_token_count: float
    iteration_tokens_sum: float
    iteration_count: float
    generation_tokens: float
    preemptions: float
    running: float
    kv_tokens: float
    """Tokens that running requests hold (`resident_tokens`)."""
    cached_prompt_tokens: float = 0.0
    """Prefix-cache hits, where this version counts them in its iteration tokens; else 0."""


@dataclass(frozen=True, kw_only=True)
class StepWindow:
    """Means over the steps between two scrapes."""

    time_seconds: float
    step_seconds: float
    prefill_tokens: float
    decode_sequences: float
    kv_tokens: float
    """At the scrapes, not over the window: `refit` allows for what lies between."""
    sampled_sequences: float
    """Running requests at the same scrapes."""
    spacing_seconds: float
    """Time between the scrapes; 0 where `kv_tokens` is a true mean over the window."""
    clock_ratio: float = 1.0


def resident_tokens(*, kv_usage: float, capacity_tokens: float, running: float, block_size: float) -> float:
    """KV tokens held, from the usage gauge: whole blocks are counted, the last of each request is half full."""
    return max(kv_usage * capacity_tokens - 0.5 * block_size * running, 0.0)


def between(before: EngineSample, after: EngineSample, *, clock_ratio: float = 1.0) -> StepWindow | WindowProblem:
    """The window between two scrapes of one engine, or why there is none. `clock_ratio` is over the largest clock."""
    values = [*vars(before).values(), *vars(after).values(), clock_ratio]
    if not all(math.isfinite(value) for value in values) or not 0.0 < clock_ratio <= 1.0:
        return WindowProblem.MISSING
    change = {name: value - getattr(before, name) for name, value in vars(after).items()}
    gauges = ("running", "kv_tokens")
    if change["time_seconds"] <= 0 or any(value < 0 for name, value in change.items() if name not in gauges):
        return WindowProblem.RESET
    steps, decodes = change["iteration_count"], change["inter_token_count"]
    if change["preemptions"] > 0:
        return WindowProblem.PREEMPTED
    if min(before.running, after.running) < 1.0:
        return WindowProblem.IDLED
    if steps < LEAST_STEPS:
        return WindowProblem.TOO_FEW_STEPS
    n = decodes / steps
    if n < LEAST_DECODES:
        return WindowProblem.LIGHT_LOAD
    prefill = change["iteration_tokens_sum"] - change["generation_tokens"] - change["cached_prompt_tokens"]
    # Requests that started or ended at the edges are counted on one side only: a few tokens below zero are none.
    if prefill < -0.02 * change["iteration_tokens_sum"]:
        return WindowProblem.INCONSISTENT
    elapsed, weighted = change["time_seconds"] / steps, change["inter_token_seconds_sum"] / decodes
    busy = n >= BUSY_DECODES
    step_seconds = elapsed if busy else weighted
    # Weighing by decodes lengthens the mean step; it cannot halve or double it.
    if not 0.0 < step_seconds < LONGEST_STEP_SECONDS or (busy and not 0.5 < weighted / elapsed < 2.0):
        return WindowProblem.INCONSISTENT
    more = 1.0 if busy else (n + 1.0) / n
    return StepWindow(
        time_seconds=after.time_seconds,
        step_seconds=step_seconds,
        prefill_tokens=max(prefill, 0.0) / steps,
        decode_sequences=n * more,
        kv_tokens=0.5 * (before.kv_tokens + after.kv_tokens) * more,
        sampled_sequences=0.5 * (before.running + after.running) * more,
        spacing_seconds=change["time_seconds"],
        clock_ratio=clock_ratio,
    )
