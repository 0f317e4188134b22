"""The status of a service: conditions, what was measured, what was decided, what is in place. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wattkeeper.api import conditions as api_conditions
from wattkeeper.api import inference_service as api
from wattkeeper.api.calibration import CalibrationStatus
from wattkeeper.api.conditions import Condition, ConditionType, Status
from wattkeeper.api.quantities import format_duration
from wattkeeper.controller import checked, counterfactual, learned
from wattkeeper.controller.caps import CapReport
from wattkeeper.controller.resolve import Problem, Service
from wattkeeper.controller.state import Decision, ServiceState
from wattkeeper.controller.text import describe, digits, duration
from wattkeeper.domain.engine import EngineChange, EngineSettings
from wattkeeper.domain.observation import MetricsState, ServiceObservation
from wattkeeper.domain.plan import LatencyTarget, Plan, Slo, Target
from wattkeeper.physics.profile import Provenance
from wattkeeper.physics.refit import RefitStatus

_TRUE, _FALSE, _UNKNOWN = Status.TRUE, Status.FALSE, Status.UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything about a service at the end of a tick."""

    service: Service
    observation: ServiceObservation | None
    current: Target
    caps: CapReport | None
    """None where no cap or clock lever is configured."""
    problems: tuple[Problem, ...] = ()
    """Found while acting, beside those of `service`."""
    energy_trusted: bool = True
    calibration: CalibrationStatus | None = None
    """Readings that no ModelProfile keeps."""
    calibrated: str = ""
    """What measured watts taught, in words."""
    replay_trouble: str | None = None
    """Why no replays come; empty where they do, None where none are configured."""


def _condition(type_: ConditionType, status: Status, reason: str, message: str = "") -> Condition:
    return Condition(type=type_, status=status, reason=reason, message=message[:4096])


def conditions(findings: Findings, state: ServiceState) -> list[Condition]:
    """All conditions of a service; `Ready` first, computed from the others."""
    service = findings.service
    problems = {problem.condition: problem for problem in (*findings.problems, *service.problems)}
    found = [
        _target(service, problems),
        _metrics(findings.observation),
        _model(findings, state, problems),
        _satisfiable(state.plan),
        _met(service, findings.observation),
        *_checked(findings, state),
        *_rollout(service, state, problems),
        *_power(findings, problems),
        _conflict(findings, problems),
    ]
    return [_ready(service, found, problems.get(ConditionType.READY)), *found]


def _target(service: Service, problems: dict[ConditionType, Problem]) -> Condition:
    problem = problems.get(ConditionType.TARGET_RESOLVED)
    if problem is not None:
        return _condition(ConditionType.TARGET_RESOLVED, _FALSE, problem.reason, problem.message)
    message = (
        f"{service.spec.target_ref.kind} {service.spec.target_ref.name}, container {service.container}, "
        f"{service.gpus_per_replica} x {service.accelerator or 'unknown GPU'} per replica"
    )
    return _condition(ConditionType.TARGET_RESOLVED, _TRUE, "Found", "; ".join((message, *service.warnings)))


def _metrics(observation: ServiceObservation | None) -> Condition:
    type_ = ConditionType.METRICS_AVAILABLE
    if observation is None:
        return _condition(type_, _UNKNOWN, "NotObserved", "nothing was measured yet")
    if observation.state.usable:
        reason = "MetricsFound" if observation.state is MetricsState.FRESH else "MetricsPartial"
        message = observation.message or f"{observation.pods_reporting} of {observation.pods_expected} pods report"
        return _condition(type_, _TRUE, reason, message)
    return _condition(type_, _FALSE, f"Metrics{observation.state.value}", observation.message)


def _model(findings: Findings, state: ServiceState, problems: dict[ConditionType, Problem]) -> Condition:
    type_, profile = ConditionType.MODEL_TRUSTED, findings.service.profile
    problem = problems.get(type_)
    if problem is not None:
        return _condition(type_, _FALSE, problem.reason, problem.message)
    if profile is None:
        return _condition(type_, _UNKNOWN, "TargetNotResolved")
    measured = state.correction.relative_error
    error = f"{measured:.0%}" if measured is not None else "not measured yet"
    if findings.calibrated:
        error = f"{error}, {findings.calibrated}"
    if state.sensor.fault is not None:
        return _condition(
            type_,
            _FALSE,
            state.sensor.fault.value,
            f"{state.sensor.message} Nothing is learnt of such readings; wider latency margins decide until the "
            "sensor is sane again",
        )
    if not state.correction.trusted:
        return _condition(
            type_,
            _FALSE,
            "PredictionDrift",
            f"measured power is {state.correction.factor:.2f} times the predicted, which is too far off or moves too "
            "much to be a correction: wider latency margins decide",
        )
    if not findings.energy_trusted:
        return _condition(
            type_, _FALSE, "NoEnergyModel", "the trained energy model is not usable: physics alone decides"
        )
    known = learned.describe(state.learning.learned, state.learning.dropped)
    if state.learning.learned.state == RefitStatus.POOR_FIT.value:
        return _condition(type_, _TRUE, "PoorFit", f"{known}; power prediction error {error}")
    if profile.provenance is Provenance.ESTIMATED:
        return _condition(
            type_,
            _TRUE,
            "Estimated",
            f"{profile.model} on {profile.gpu.name} is a data-sheet estimate (margins are wider); {known}; "
            f"power prediction error {error}. A ModelProfile gives measured numbers",
        )
    return _condition(type_, _TRUE, profile.provenance.value, f"power prediction error {error}; {known}")


def _satisfiable(plan: Plan | None) -> Condition:
    type_ = ConditionType.SLO_SATISFIABLE
    if plan is None or plan.planned_requests_per_second is None:
        return _condition(type_, _UNKNOWN, "NotPlanned", plan.message if plan is not None else "")
    if plan.feasible:
        return _condition(type_, _TRUE, "Feasible")
    return _condition(type_, _FALSE, plan.binding.value, plan.message)


def _met(service: Service, observation: ServiceObservation | None) -> Condition:
    type_ = ConditionType.SLO_MET
    if observation is None or not observation.state.usable:
        return _condition(type_, _UNKNOWN, "NotMeasured")
    missed = missed_targets(service.slo, observation)
    if missed:
        return _condition(type_, _FALSE, "TargetMissed", "; ".join(missed))
    measured = ", ".join(
        f"{name} p{goal.percentile:g} is {duration(value)} of {format_duration(goal.seconds)}"
        for name, goal, value in _measured_goals(service.slo, observation)
    )
    return _condition(type_, _TRUE, "TargetsMet" if measured else "Idle", measured)


def _checked(findings: Findings, state: ServiceState) -> list[Condition]:
    if findings.replay_trouble is None:
        return []
    found = checked.condition(state.plan, findings.service.slo, findings.replay_trouble)
    return [_condition(ConditionType.SLO_CHECKED, found.status, found.reason, found.message)]


def _measured_goals(slo: Slo, observation: ServiceObservation) -> list[tuple[str, LatencyTarget, float]]:
    """Name, target and measured percentile, for those of the targets that were measured."""
    return [
        (name, goal, value)
        for name, goal, value in (
            ("TTFT", slo.ttft, observation.ttft_seconds),
            ("TPOT", slo.tpot, observation.tpot_seconds),
        )
        if goal is not None and value is not None
    ]


def missed_targets(slo: Slo, observation: ServiceObservation | None) -> list[str]:
    """Each target that the measured percentile exceeds, in words; none where nothing usable was measured."""
    if observation is None or not observation.state.usable:
        return []
    return [
        f"{name} p{goal.percentile:g} is {duration(value)}, target {format_duration(goal.seconds)}"
        for name, goal, value in _measured_goals(slo, observation)
        if value > goal.seconds
    ]


def _rollout(service: Service, state: ServiceState, problems: dict[ConditionType, Problem]) -> list[Condition]:
    type_ = ConditionType.ROLLOUT
    if type_ in problems:
        return [_condition(type_, _FALSE, problems[type_].reason, problems[type_].message)]
    if service.stuck is not None:
        return [_condition(type_, _FALSE, "Stuck", service.stuck)]
    if service.rolling_out:
        return [_condition(type_, _UNKNOWN, "Progressing", "pods are being replaced")]
    if state.rolled_back:
        return [_condition(type_, _FALSE, "RolledBack", state.rolled_back)]
    refusal = service.engine_refusal if _has_engine_lever(service) else None
    if refusal is not None and refusal.condition is type_:
        return [_condition(type_, _FALSE, refusal.reason, refusal.message)]
    return [_condition(type_, _TRUE, "Complete")] if service.target is not None else []


def _has_engine_lever(service: Service) -> bool:
    engine = service.levers.engine
    return any(vars(engine).values())


def _power(findings: Findings, problems: dict[ConditionType, Problem]) -> list[Condition]:
    type_ = ConditionType.POWER_ENFORCED
    if findings.caps is None:
        return []
    if type_ in problems:
        return [_condition(type_, _FALSE, problems[type_].reason, problems[type_].message)]
    report = findings.caps
    status = _UNKNOWN if report.enforced is None else _TRUE if report.enforced else _FALSE
    return [_condition(type_, status, report.reason, report.message)]


def _conflict(findings: Findings, problems: dict[ConditionType, Problem]) -> Condition:
    type_, service = ConditionType.CONFLICT, findings.service
    refusal = service.engine_refusal if _has_engine_lever(service) else None
    foreign = refusal if refusal is not None and refusal.condition is type_ else None
    problem = problems.get(type_) or service.conflict or foreign
    if problem is not None:
        return _condition(type_, _TRUE, problem.reason, problem.message)
    return _condition(type_, _FALSE, "NoConflict")


def _ready(service: Service, others: Sequence[Condition], problem: Problem | None) -> Condition:
    """False where the operator cannot do what it was asked to; a roll-out taken back is past, and no such thing."""
    if problem is not None:
        return _condition(ConditionType.READY, _FALSE, problem.reason, problem.message)
    if service.spec.paused:
        return _condition(ConditionType.READY, _FALSE, "Paused", "spec.paused is true")
    bad = [
        item
        for item in others
        if (item.status == _FALSE and item.type not in (ConditionType.CONFLICT, ConditionType.SLO_MET))
        or (item.status == _TRUE and item.type == ConditionType.CONFLICT)
    ]
    bad = [item for item in bad if item.reason not in ("RolledBack", "ReplayMisses")]
    if bad:
        return _condition(ConditionType.READY, _FALSE, bad[0].reason, bad[0].message)
    waiting = [item for item in others if item.status == _UNKNOWN and item.type == ConditionType.METRICS_AVAILABLE]
    if waiting:
        return _condition(ConditionType.READY, _UNKNOWN, waiting[0].reason, waiting[0].message)
    return _condition(ConditionType.READY, _TRUE, "Keeping")


def build(
    findings: Findings, state: ServiceState, *, now_text: str, to_text: Callable[[float], str]
) -> api.InferenceServiceStatus:
    """The whole status but for the factors, which stay as they were written last.

    `to_text` writes a decision time as a wall time stamp.
    """
    service = findings.service
    previous = state.written or api.InferenceServiceStatus()
    found = api_conditions.update(
        previous.conditions, conditions(findings, state), now=now_text, generation=service.generation
    )
    ready = found[0]
    phase = "Paused" if service.spec.paused else {_TRUE: "Ready", _FALSE: "Degraded", _UNKNOWN: "Pending"}[ready.status]
    return api.InferenceServiceStatus(
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


def _observed(observation: ServiceObservation, now_text: str) -> api.ObservedStatus:
    workload = observation.workload
    return api.ObservedStatus(
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


def _plan(state: ServiceState, slo: Slo, to_text: Callable[[float], str]) -> api.PlanStatus:
    plan = state.plan
    if plan is None:
        return api.PlanStatus()
    predicted = api.PredictedStatus()
    if plan.prediction is not None:
        low, high = plan.prediction.power_interval_watts
        predicted = api.PredictedStatus(
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
    return api.PlanStatus(
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


def _applied(findings: Findings) -> api.AppliedStatus:
    service, report = findings.service, findings.caps
    if service.target is None:
        return api.AppliedStatus()
    watts = api.PowerCapStatus(requested=findings.current.power_cap_watts)
    if report is not None:
        watts = api.PowerCapStatus(
            requested=digits(report.requested_watts),
            clamped=digits(report.clamped_watts),
            enforced=digits(report.enforced_watts),
            measured=digits(report.measured_watts),
        )
    return api.AppliedStatus(
        replicas=service.desired_replicas,
        ready_replicas=service.ready_replicas,
        engine=engine_status(service.engine),
        power_cap_watts=watts,
    )


def _savings(service: Service, state: ServiceState) -> api.SavingsStatus:
    account = state.savings
    if account.counterfactual_joules <= 0:
        return api.SavingsStatus()

    def percent(counterfactual: float) -> float | None:
        return round(100 * (1 - account.measured_joules / counterfactual), 1) if counterfactual > 0 else None

    return api.SavingsStatus(
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
) -> api.MemoryStatus:
    def text(time: float | None) -> str | None:
        return None if time is None else to_text(time)

    return api.MemoryStatus(
        last_scale_up=text(state.last_scale_up),
        last_scale_down=text(state.last_scale_down),
        last_rollout=text(state.last_rollout),
        rolled_back=state.rolled_back,
        bad_engines=[engine_status(change) for change in state.bad_engines][-16:],
        correction=api.CorrectionStatus(**state.correction.to_dict()) if state.correction.samples else None,
        calibration=calibration,
    )


def engine_status(engine: EngineSettings | EngineChange) -> api.EngineStatus:
    """Arguments as status shows them."""
    return api.EngineStatus(
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
