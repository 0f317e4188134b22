"""What holds of a service and what does not: its conditions, each with a reason and a sentence. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from wattkeeper.api.calibration import CalibrationStatus
from wattkeeper.api.conditions import Condition, ConditionType, Status
from wattkeeper.api.quantities import format_duration
from wattkeeper.controller import checked, learned
from wattkeeper.controller.caps import CapReport
from wattkeeper.controller.service import Problem, Service
from wattkeeper.controller.state import ServiceState
from wattkeeper.controller.text import duration
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
    energy_reason: str = ""
    """Why no trained energy model is in use, as a reason of the condition; empty with one."""
    energy_problem: str = ""
    """The same for people."""
    calibration: CalibrationStatus | None = None
    """Readings that no ModelProfile keeps."""
    calibrated: str = ""
    """What measured watts taught, in words."""
    replay_trouble: str | None = None
    """Why no replays come; empty where they do, None where none are configured."""


def _condition(type_: ConditionType, status: Status, reason: str, message: str = "") -> Condition:
    return Condition(type=type_, status=status, reason=reason, message=message[:4096])


def of_service(findings: Findings, state: ServiceState) -> list[Condition]:
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
    if findings.energy_reason:
        return _condition(
            type_,
            _FALSE,
            findings.energy_reason,
            "the trained energy model is not usable: physics alone foresees power, with wide intervals, and wider "
            "latency margins decide" + (f" ({findings.energy_problem})" if findings.energy_problem else ""),
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
