"""The operator's own Prometheus metrics: all of them, in one place."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SERVICE = ("namespace", "service")


class OperatorMetrics:
    """Metrics of one operator process, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tick_seconds = Histogram(
            "wattkeeper_loop_tick_seconds",
            "Time of one pass of the fleet loop",
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60),
            registry=self.registry,
        )
        self.step_seconds = Counter(
            "wattkeeper_loop_step_seconds", "Time spent in a step of the loop", ("step",), registry=self.registry
        )
        self.status_writes = Counter(
            "wattkeeper_loop_status_writes", "Status patches of InferenceServices", registry=self.registry
        )
        self.ticks = Counter("wattkeeper_loop_ticks", "Passes by result", ("result",), registry=self.registry)
        self.services = Gauge("wattkeeper_loop_services", "InferenceServices kept", ("mode",), registry=self.registry)
        self.last_success = Gauge(
            "wattkeeper_loop_last_success_timestamp_seconds", "When a pass last succeeded", registry=self.registry
        )
        self.api_requests = Counter(
            "wattkeeper_kubernetes_requests",
            "API requests by verb and code",
            ("verb", "code"),
            registry=self.registry,
        )
        self.actions = Counter(
            "wattkeeper_actuator_actions", "Actions taken", (*_SERVICE, "action"), registry=self.registry
        )
        self.action_errors = Counter(
            "wattkeeper_actuator_errors", "Actions that failed", (*_SERVICE, "action"), registry=self.registry
        )
        self.decisions = Counter(
            "wattkeeper_planner_decisions", "Plans by reason", (*_SERVICE, "reason"), registry=self.registry
        )
        self.plan_replicas = Gauge(
            "wattkeeper_plan_replicas",
            "Replicas wanted; with control External this is the number for KEDA or an HPA",
            _SERVICE,
            registry=self.registry,
        )
        self.plan_cap = Gauge(
            "wattkeeper_plan_power_cap_watts", "GPU power limit wanted, 0 = none", _SERVICE, registry=self.registry
        )
        self.predicted_watts = Gauge(
            "wattkeeper_plan_predicted_watts", "Power expected of the plan", _SERVICE, registry=self.registry
        )
        self.observed_watts = Gauge(
            "wattkeeper_observed_power_watts", "Measured power of all GPUs", _SERVICE, registry=self.registry
        )
        self.observed_rate = Gauge(
            "wattkeeper_observed_requests_per_second", "Measured arrival rate", _SERVICE, registry=self.registry
        )
        self.profile_level = Gauge(
            "wattkeeper_profile_level", "Measured over the profile's step time", _SERVICE, registry=self.registry
        )
        self.profile_error = Gauge(
            "wattkeeper_profile_relative_error",
            "One-sigma relative error of the step time that is planned with",
            _SERVICE,
            registry=self.registry,
        )
        self.profile_confidence = Gauge(
            "wattkeeper_profile_confidence",
            "0 = only the profile speaks, 1 = all terms of the step time are measured",
            _SERVICE,
            registry=self.registry,
        )
        self.profile_windows = Gauge(
            "wattkeeper_profile_windows",
            "Windows between two scrapes that the step time was refitted to",
            _SERVICE,
            registry=self.registry,
        )
        self.power_learnt = Gauge(
            "wattkeeper_power_learnt_ratio",
            "Calibrated over uncalibrated prediction of the power of what is in place: what measured watts taught",
            _SERVICE,
            registry=self.registry,
        )
        self.energy = Gauge(
            "wattkeeper_savings_energy_joules",
            "Measured energy since the account began",
            _SERVICE,
            registry=self.registry,
        )
        self.counterfactual = Gauge(
            "wattkeeper_savings_counterfactual_joules",
            "Energy that the named counterfactual would have taken, predicted",
            _SERVICE,
            registry=self.registry,
        )
        self.condition = Gauge(
            "wattkeeper_service_condition",
            "1 = True, 0 = False, -1 = Unknown",
            (*_SERVICE, "type"),
            registry=self.registry,
        )

        self.replays = Counter(
            "wattkeeper_replay_runs", "Replays of lever settings by outcome", ("outcome",), registry=self.registry
        )
        self.replay_seconds = Histogram(
            "wattkeeper_replay_seconds",
            "Time of one replay in its worker",
            buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
            registry=self.registry,
        )
        self.replay_latency = Histogram(
            "wattkeeper_replay_latency_seconds",
            "From the first wish for a replay to its result",
            buckets=(0.1, 0.5, 1, 2.5, 5, 15, 30, 60, 120, 300, 600),
            registry=self.registry,
        )
        self.replay_queue = Gauge("wattkeeper_replay_queue", "Replays that wait for a worker", registry=self.registry)
        self.replay_wait = Gauge(
            "wattkeeper_replay_longest_wait_seconds", "Age of the oldest unanswered wish", registry=self.registry
        )
        self.replay_available = Gauge(
            "wattkeeper_replay_available",
            "1 = replays come, 0 = the last worker died or hung: plans hold or move to more capacity",
            registry=self.registry,
        )
        self.replay_age = Gauge(
            "wattkeeper_plan_replay_age_seconds",
            "Age of the replay that the plan rests on (decision time)",
            _SERVICE,
            registry=self.registry,
        )

    def forget(self, namespace: str, service: str) -> None:
        """Drop the series of a deleted service."""
        for metric in (
            self.actions,
            self.action_errors,
            self.decisions,
            self.observed_watts,
            self.observed_rate,
            self.profile_level,
            self.profile_error,
            self.profile_confidence,
            self.profile_windows,
            self.power_learnt,
            self.energy,
            self.counterfactual,
            self.condition,
            *self._plan,
        ):
            metric.remove_by_labels({"namespace": namespace, "service": service})

    def forget_plan(self, namespace: str, service: str) -> None:
        """Drop the series of a plan that is no more: an autoscaler must not follow an old number."""
        for metric in self._plan:
            metric.remove(namespace, service)

    @property
    def _plan(self) -> tuple[Gauge, ...]:
        return (self.plan_replicas, self.plan_cap, self.predicted_watts, self.replay_age)
