"""What a pass leaves in the operator's own metrics."""

from collections.abc import Sequence

from wattkeeper.api.conditions import ConditionType, Status
from wattkeeper.api.inference_service import Mode
from wattkeeper.controller.entry import Entry
from wattkeeper.controller.metrics import OperatorMetrics


def export(entries: Sequence[Entry], metrics: OperatorMetrics, *, now: float) -> None:
    """Set the gauges of all services; `now` is decision time."""
    modes = dict.fromkeys(Mode, 0)
    for entry in entries:
        modes[entry.service.spec.mode] += 1
        labels, state = entry.service.key, entry.state
        if state.plan is None:
            metrics.forget_plan(*labels)
        else:
            metrics.plan_replicas.labels(*labels).set(state.plan.target.replicas)
            metrics.plan_cap.labels(*labels).set(state.plan.target.power_cap_watts or 0.0)
            if state.plan.check is not None and state.plan.check.replayed is not None:
                age = now - state.plan.check.replayed.time_seconds
                metrics.replay_age.labels(*labels).set(age)
            else:
                metrics.replay_age.remove(*labels)
            if state.plan.prediction is not None:
                metrics.predicted_watts.labels(*labels).set(state.plan.prediction.power_watts)
        if entry.observation is not None and entry.observation.power_watts is not None:
            metrics.observed_watts.labels(*labels).set(entry.observation.power_watts)
        if entry.observation is not None and entry.observation.workload is not None:
            metrics.observed_rate.labels(*labels).set(entry.observation.workload.requests_per_second)
        learned, profile = state.learning.learned, entry.service.profile
        if profile is not None:
            metrics.profile_level.labels(*labels).set(learned.level)
            metrics.profile_error.labels(*labels).set(profile.relative_error)
            metrics.profile_confidence.labels(*labels).set(learned.confidence)
            metrics.profile_windows.labels(*labels).set(learned.windows)
        if state.power_learnt is not None:
            metrics.power_learnt.labels(*labels).set(state.power_learnt)
        metrics.energy.labels(*labels).set(state.savings.measured_joules)
        metrics.counterfactual.labels(*labels).set(state.savings.counterfactual_joules)
        shown = {item.type: item.status for item in state.written.conditions} if state.written is not None else {}
        for type_ in ConditionType:
            if type_ in shown:
                value = {Status.TRUE: 1.0, Status.FALSE: 0.0, Status.UNKNOWN: -1.0}[shown[type_]]
                metrics.condition.labels(*labels, type_).set(value)
            else:
                metrics.condition.remove(*labels, type_)
    for mode, count in modes.items():
        metrics.services.labels(mode.value).set(count)
