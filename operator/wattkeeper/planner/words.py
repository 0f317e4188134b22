"""Sentences about targets and predictions: the same words in plans, events and explanations."""

from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.plan import Binding, LatencyTarget, Slo, Target
from wattkeeper.domain.replay import ReplayResult
from wattkeeper.planner.evidence import Judged, Standing
from wattkeeper.planner.space import Engine, Power
from wattkeeper.planner.types import ReplayEvidence

_BINDING = {
    Binding.STABILITY: "the replicas could not keep up with the load",
    Binding.KV_CACHE: "the KV cache would overflow",
    Binding.RATE_UNKNOWN: "the request rate is not known",
    Binding.LIMITS_CONTRADICT: "vLLM does not start with a token budget below the request limit",
    Binding.TTFT: "TTFT would miss its target",
    Binding.TPOT: "TPOT would miss its target",
    Binding.PLANNED_LOAD: "the planned load would exceed its ceiling",
}


def watts(value: float) -> str:
    """Three significant digits, in W or kW."""
    return f"{value / 1000:.2f} kW" if value >= 1000 else f"{value:.0f} W"


def seconds(value: float) -> str:
    """In ms below one second."""
    if value == float("inf"):
        return "without bound"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def replicas(count: int) -> str:
    """A count with its noun."""
    return f"{count} replica" + ("" if count == 1 else "s")


def power(value: Power) -> str:
    """Limits of one GPU."""
    parts = []
    if value.cap_watts is not None:
        parts.append(f"{value.cap_watts:.0f} W cap")
    if value.clock_mhz is not None:
        parts.append(f"{value.clock_mhz:.0f} MHz lock")
    return ", ".join(parts) or "full power"


def change(value: EngineChange) -> str:
    """Engine arguments as name=value."""
    return ", ".join(f"{name}={setting}" for name, setting in value.as_dict().items())


def target(value: Target, engine_change: EngineChange | None = None) -> str:
    """Replicas, limits, and what changes of the engine."""
    text = f"{replicas(value.replicas)} at {power(Power(cap_watts=value.power_cap_watts, clock_mhz=value.clock_mhz))}"
    return f"{text} with {change(engine_change)}" if engine_change else text


def option(count: int, limits: Power, engine: Engine) -> str:
    """The same of a candidate."""
    text = f"{replicas(count)} at {power(limits)}"
    return f"{text} with {change(engine.change)}" if engine.change else text


def latency(slo: Slo, ttft_seconds: float, tpot_seconds: float) -> str:
    """Predicted latencies beside their targets."""
    parts = [
        f"{name} p{goal.percentile:g} {seconds(value)} of {seconds(goal.seconds)}"
        for name, goal, value in (("TTFT", slo.ttft, ttft_seconds), ("TPOT", slo.tpot, tpot_seconds))
        if goal is not None
    ]
    return ", ".join(parts)


def violation(binding: Binding, slo: Slo, ttft_upper_seconds: float, tpot_upper_seconds: float, margin: float) -> str:
    """Why a candidate is not feasible, with numbers where there are some; `margin` is relative."""
    goal: LatencyTarget | None = None
    value = 0.0
    if binding is Binding.TTFT:
        goal, value = slo.ttft, ttft_upper_seconds
    elif binding is Binding.TPOT:
        goal, value = slo.tpot, tpot_upper_seconds
    if goal is None:
        return _BINDING.get(binding, binding.value)
    name = f"{binding.value.upper()} p{goal.percentile:g}"
    return f"{name} of at most {seconds(value)} predicted, {margin:.0%} margin on top, against {seconds(goal.seconds)}"


def replayed(slo: Slo, result: ReplayResult) -> str:
    """Replayed latencies with their bounds beside their targets."""
    parts = [
        f"{name} p{goal.percentile:g} {seconds(value)} (at most {seconds(bound)}) of {seconds(goal.seconds)}"
        for name, goal, value, bound in (
            ("TTFT", slo.ttft, result.ttft_seconds, result.ttft_upper_seconds),
            ("TPOT", slo.tpot, result.tpot_seconds, result.tpot_upper_seconds),
        )
        if goal is not None
    ]
    return ", ".join(parts)


def standing(judged: Judged, slo: Slo, margin: float, replays: ReplayEvidence | None) -> str:
    """Why a candidate that needs a replay may not be taken, or is taken back; `margin` is relative."""
    if judged.replayed is None:
        trouble = replays.trouble if replays is not None else ""
        return f"a replay is awaited, and none comes: {trouble}" if trouble else "a replay is awaited"
    result = judged.replayed.result
    if judged.binding is Binding.EVIDENCE:
        return f"its replay is no proof: {result.message}"
    rate = judged.replayed.requests_per_second
    told = f"{result.requests} replayed requests at {rate:.3g} req/s show {replayed(slo, result)}"
    return told if judged.standing is Standing.MISSES else f"{told}, which is not enough with {margin:.0%} margin"
