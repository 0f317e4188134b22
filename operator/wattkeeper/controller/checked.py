"""The SLA check of a plan as status tells it, for `kubectl describe` and `wattkeeper explain`, and as a condition."""

from collections.abc import Callable

from wattkeeper.api import service_status
from wattkeeper.api.conditions import Condition, ConditionType, Status
from wattkeeper.api.quantities import format_duration
from wattkeeper.controller.text import describe, digits, duration
from wattkeeper.domain.plan import Binding, LatencyTarget, Plan, SlaCheck, Slo, Target
from wattkeeper.domain.replay import Replayed
from wattkeeper.planner import words
from wattkeeper.planner.evidence import Standing

REASONS = {
    Standing.MEETS: (Status.TRUE, "Replayed"),
    Standing.UNKNOWN: (Status.UNKNOWN, "ReplayAwaited"),
    Standing.SHORT: (Status.TRUE, "ReplayedWithoutMargin"),
    Standing.MISSES: (Status.FALSE, "ReplayMisses"),
}


def condition(plan: Plan | None, slo: Slo, trouble: str) -> Condition:
    """SLOChecked: whether a replay has confirmed the plan. `trouble` says why none can; empty where they come."""
    type_ = ConditionType.SLO_CHECKED
    if trouble:
        message = f"{trouble}; until replays come again no capacity is taken away"
        return Condition(type=type_, status=Status.FALSE, reason="ReplayUnavailable", message=message)
    if plan is None or plan.check is None or not plan.check.replay:
        return Condition(type=type_, status=Status.UNKNOWN, reason="NotPlanned")
    status, reason = REASONS[Standing(plan.check.replay)]
    message = ""
    if plan.check.replayed is not None:
        item = plan.check.replayed
        message = item.result.message or (
            f"{item.result.requests} replayed requests at {item.requests_per_second:.3g} req/s: "
            f"{words.replayed(slo, item.result)}"
        )
    return Condition(type=type_, status=status, reason=reason, message=message)


def check_status(plan: Plan, slo: Slo, to_text: Callable[[float], str]) -> service_status.CheckStatus | None:
    """The check of a plan. `to_text` writes a decision time as a wall time stamp."""
    check = plan.check
    if check is None:
        return None
    prediction = plan.prediction
    result = None if check.replayed is None else check.replayed.result

    def latency(
        goal: LatencyTarget | None, predicted: float | None, upper: float, replayed: tuple[float, float] | None
    ) -> service_status.LatencyCheckStatus | None:
        if goal is None:
            return None
        return service_status.LatencyCheckStatus(
            percentile=goal.percentile,
            target=format_duration(goal.seconds),
            predicted=duration(predicted),
            upper=duration(upper),
            replayed=duration(replayed[0]) if replayed is not None else None,
            replayed_upper=duration(replayed[1]) if replayed is not None else None,
        )

    return service_status.CheckStatus(
        margin=digits(check.margin),
        utilisation=digits(prediction.utilisation) if prediction is not None else None,
        load_ceiling=digits(check.load_ceiling),
        ttft=latency(
            slo.ttft,
            prediction.ttft_seconds if prediction is not None else None,
            check.ttft_upper_seconds,
            (result.ttft_seconds, result.ttft_upper_seconds) if result is not None else None,
        ),
        tpot=latency(
            slo.tpot,
            prediction.tpot_seconds if prediction is not None else None,
            check.tpot_upper_seconds,
            (result.tpot_seconds, result.tpot_upper_seconds) if result is not None else None,
        ),
        replay=_replay(check, to_text) if check.replay else None,
        what_if=[
            service_status.WhatIfStatus(
                change=item.change,
                ttft=duration(item.ttft_seconds),
                tpot=duration(item.tpot_seconds),
                utilisation=digits(item.utilisation),
                violates=None if item.violation is Binding.NONE else item.violation.value,
            )
            for item in check.what_if
        ],
    )


def _replay(check: SlaCheck, to_text: Callable[[float], str]) -> service_status.ReplayCheckStatus:
    item: Replayed | None = check.replayed
    if item is None:
        return service_status.ReplayCheckStatus(standing=check.replay)
    setting, result = item.setting, item.result
    target = Target(
        replicas=setting.replicas,
        power_cap_watts=setting.power_cap_watts,
        clock_mhz=setting.clock_mhz,
        engine=setting.engine,
    )
    return service_status.ReplayCheckStatus(
        standing=check.replay,
        setting=describe(target),
        qps=digits(item.requests_per_second),
        requests=result.requests,
        recorded=result.recorded,
        attainment=round(result.attainment, 4),
        attainment_low=round(result.attainment_lower, 4),
        preemptions_per_request=digits(result.preemptions_per_request),
        time=to_text(item.time_seconds),
        message=result.message[:1024] or None,
    )
