"""The status of a service: what was measured, what was decided, what is in place. Pure."""

from collections.abc import Callable

from wattkeeper.api import conditions as api_conditions
from wattkeeper.api import service_status
from wattkeeper.api.calibration import CalibrationStatus
from wattkeeper.api.conditions import Status
from wattkeeper.controller import checked, conditions, counterfactual, learned
from wattkeeper.controller.conditions import Findings
from wattkeeper.controller.service import Service
from wattkeeper.controller.state import Decision, ServiceState
from wattkeeper.controller.text import describe, digits, duration
from wattkeeper.domain.engine import EngineChange, EngineSettings
from wattkeeper.domain.observation import ServiceObservation
from wattkeeper.domain.plan import Plan, Slo, Target

_TRUE, _FALSE, _UNKNOWN = Status.TRUE, Status.FALSE, Status.UNKNOWN


def build(
    findings: Findings, state: ServiceState, *, now_text: str, to_text: Callable[[float], str]
) -> service_status.InferenceServiceStatus:
    """The whole status but for the factors, which stay as they were written last.

    `to_text` writes a decision time as a wall time stamp.
    """
    service = findings.service
    previous = state.written or service_status.InferenceServiceStatus()
    found = api_conditions.update(
        previous.conditions, conditions.of_service(findings, state), now=now_text, generation=service.generation
    )
    ready = found[0]
    phase = "Paused" if service.spec.paused else {_TRUE: "Ready", _FALSE: "Degraded", _UNKNOWN: "Pending"}[ready.status]
    return service_status.InferenceServiceStatus(
        observed_generation=service.generation,
        phase=phase,
        conditions=list(found),
        observed=_observed(findings.observation, now_text) if findings.observation is not None else previous.observed,
        plan=previous.plan if _only_began(findings, state) else _plan(state, service.slo, to_text),
        applied=_applied(findings),
        factors=previous.factors,
        profile=learned.to_status(state.learning.learned, service.profile, name=service.profile_name),
        savings=_savings(service, state),
        history=list(state.history),
        memory=_memory(state, findings.calibration, to_text),
        selector=_selector(service),
    )


def _only_began(findings: Findings, state: ServiceState) -> bool:
    """Before the first measurement after a start, the last decision is still the one in force."""
    return findings.service.target is not None and findings.observation is None and state.plan is None


def _observed(observation: ServiceObservation, now_text: str) -> service_status.ObservedStatus:
    workload = observation.workload
    return service_status.ObservedStatus(
        time=now_text,
        qps=digits(workload.requests_per_second) if workload is not None and observation.state.usable else None,
        prompt_tokens=digits(workload.prompt.mean) if workload is not None else None,
        output_tokens=digits(workload.output.mean) if workload is not None else None,
        ttft=duration(observation.ttft_seconds),
        tpot=duration(observation.tpot_seconds),
        kv_usage=digits(observation.kv_usage_max),
        prefix_hit_ratio=digits(workload.prefix_hit_ratio) if workload is not None else None,
        preemptions_per_sec=digits(observation.preemptions_per_second),
        waiting=digits(observation.waiting),
        power_watts=digits(observation.power_watts),
        joules_per_token=None if observation.joules_per_token is None else f"{observation.joules_per_token:.3g}",
        pods=f"{observation.pods_reporting}/{observation.pods_expected}",
    )


def decision(plan: Plan) -> Decision:
    """What a plan decides, without its reasons."""
    return (
        plan.target.replicas,
        plan.target.power_cap_watts,
        plan.target.clock_mhz,
        engine_status(plan.engine_change),
    )


def _plan(state: ServiceState, slo: Slo, to_text: Callable[[float], str]) -> service_status.PlanStatus:
    plan = state.plan
    if plan is None:
        return service_status.PlanStatus()
    predicted = service_status.PredictedStatus()
    if plan.prediction is not None:
        low, high = plan.prediction.power_interval_watts
        predicted = service_status.PredictedStatus(
            power_watts=digits(plan.prediction.power_watts),
            power_low_watts=digits(low),
            power_high_watts=digits(high),
            ttft=duration(plan.prediction.ttft_seconds),
            tpot=duration(plan.prediction.tpot_seconds),
            utilisation=digits(plan.prediction.utilisation),
        )
    runner_up = None
    if plan.runner_up is not None:
        runner_up = f"{describe(plan.runner_up.target)} at {plan.runner_up.power_watts:.0f} W: {plan.runner_up.why_not}"
    return service_status.PlanStatus(
        replicas=plan.target.replicas,
        power_cap_watts=plan.target.power_cap_watts,
        clock_mhz=plan.target.clock_mhz,
        engine=engine_status(plan.engine_change),
        engine_diff=state.engine_diff,
        reason=plan.reason.value,
        message=plan.message,
        binding=plan.binding.value,
        runner_up=runner_up,
        planned_qps=digits(plan.planned_requests_per_second),
        decided_at=state.decided_at,
        predicted=predicted,
        check=checked.check_status(plan, slo, to_text),
    )


def _applied(findings: Findings) -> service_status.AppliedStatus:
    service, report = findings.service, findings.caps
    if service.target is None:
        return service_status.AppliedStatus()
    watts = service_status.PowerCapStatus(requested=findings.current.power_cap_watts)
    if report is not None:
        watts = service_status.PowerCapStatus(
            requested=digits(report.requested_watts),
            clamped=digits(report.clamped_watts),
            enforced=digits(report.enforced_watts),
            measured=digits(report.measured_watts),
        )
    return service_status.AppliedStatus(
        replicas=service.desired_replicas,
        ready_replicas=service.ready_replicas,
        engine=engine_status(service.engine),
        power_cap_watts=watts,
    )


def _savings(service: Service, state: ServiceState) -> service_status.SavingsStatus:
    account = state.savings
    if account.counterfactual_joules <= 0:
        return service_status.SavingsStatus()

    def percent(counterfactual: float) -> float | None:
        return round(100 * (1 - account.measured_joules / counterfactual), 1) if counterfactual > 0 else None

    return service_status.SavingsStatus(
        counterfactual=counterfactual.name(service.levers, service.desired_replicas),
        since=account.since,
        energy_kwh=round(account.measured_joules / 3.6e6, 4),
        counterfactual_kwh=round(account.counterfactual_joules / 3.6e6, 4),
        percent=percent(account.counterfactual_joules),
        percent_low=percent(account.counterfactual_low_joules),
        percent_high=percent(account.counterfactual_high_joules),
    )


def _selector(service: Service) -> str | None:
    if service.target is None:
        return None
    labels = (service.target["spec"].get("selector") or {}).get("matchLabels") or {}
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or None


def _memory(
    state: ServiceState, calibration: CalibrationStatus | None, to_text: Callable[[float], str]
) -> service_status.MemoryStatus:
    def text(time: float | None) -> str | None:
        return None if time is None else to_text(time)

    return service_status.MemoryStatus(
        last_scale_up=text(state.last_scale_up),
        last_scale_down=text(state.last_scale_down),
        last_rollout=text(state.last_rollout),
        rolled_back=state.rolled_back,
        bad_engines=[engine_status(change) for change in state.bad_engines][-16:],
        correction=service_status.CorrectionStatus(**state.correction.to_dict()) if state.correction.samples else None,
        calibration=calibration,
    )


def engine_status(engine: EngineSettings | EngineChange) -> service_status.EngineStatus:
    """Arguments as status shows them."""
    return service_status.EngineStatus(
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        kv_cache_memory_bytes=engine.kv_cache_memory_bytes,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_dtype=engine.kv_cache_dtype,
    )


def describe_change(before: Target, after: Target, change: EngineChange) -> str:
    """What moves from one target to the next; empty where nothing does."""
    parts = []
    if before.replicas != after.replicas:
        parts.append(f"replicas {before.replicas} -> {after.replicas}")
    if before.power_cap_watts != after.power_cap_watts:
        parts.append(f"cap {_watts(before.power_cap_watts)} -> {_watts(after.power_cap_watts)}")
    if before.clock_mhz != after.clock_mhz:
        parts.append(f"clock {_mhz(before.clock_mhz)} -> {_mhz(after.clock_mhz)}")
    for name, value in change.as_dict().items():
        parts.append(f"{name} {getattr(before.engine, name)} -> {value}")
    return ", ".join(parts)


def _watts(value: float | None) -> str:
    return "default" if value is None else f"{value:.0f}W"


def _mhz(value: float | None) -> str:
    return "free" if value is None else f"{value:.0f}MHz"
