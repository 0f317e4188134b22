"""From API types to the plain data that the deciding rooms work with."""

from wattkeeper.api import inference_service as api
from wattkeeper.domain import plan


def slo(spec: api.SloSpec) -> plan.Slo:
    """Latency objective in seconds."""
    return plan.Slo(ttft=_latency(spec.ttft), tpot=_latency(spec.tpot), min_attainment=spec.min_attainment)


def _latency(goal: api.LatencyGoal | None) -> plan.LatencyTarget | None:
    return None if goal is None else plan.LatencyTarget(percentile=goal.percentile, seconds=goal.target)


def levers(spec: api.InferenceServiceSpec) -> plan.Levers:
    """What may be moved; a pinned replica count narrows its bounds to one value."""
    replicas = spec.levers.replicas
    lever: plan.ReplicaLever | None = None
    if replicas is not None:
        lever = plan.ReplicaLever(
            minimum=spec.replicas or replicas.min,
            maximum=spec.replicas or replicas.max,
            control=plan.ReplicaControl(replicas.control.value),
        )
    elif spec.replicas is not None:
        lever = plan.ReplicaLever(minimum=spec.replicas, maximum=spec.replicas)
    cap, clock, engine = spec.levers.power_cap, spec.levers.clock_lock, spec.levers.engine
    return plan.Levers(
        replicas=lever,
        power_cap=None if cap is None else plan.RangeLever(minimum=cap.min, maximum=cap.max, step=cap.step),
        clock_lock=None if clock is None else plan.RangeLever(minimum=clock.min, maximum=clock.max, step=clock.step),
        engine=plan.EngineLever(
            max_num_seqs=tuple(sorted(set(engine.max_num_seqs))),
            max_num_batched_tokens=tuple(sorted(set(engine.max_num_batched_tokens))),
            kv_cache_memory_bytes=tuple(sorted(set(engine.kv_cache_memory))),
            gpu_memory_utilization=tuple(sorted(set(engine.gpu_memory_utilization))),
            kv_cache_dtype=tuple(dict.fromkeys(engine.kv_cache_dtype)),
        ),
        rollout_min_interval_seconds=spec.levers.rollout.min_interval,
    )
