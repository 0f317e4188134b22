"""The horizontal pod autoscaler of Kubernetes (`autoscaling/v2`).

Source: Kubernetes 1.35 documentation, "Horizontal Pod Autoscaling". Every 15 s (the controller manager's
`--horizontal-pod-autoscaler-sync-period`) the largest of what the metrics ask for, held to the behaviour and the
bounds. Where a metric cannot be read and the others ask for fewer pods, nothing changes; where none can be read,
nothing changes.

Metrics as people use them for vLLM: the queue, `vllm:num_requests_waiting` with 5 per pod (vLLM production-stack 0.1,
"Autoscaling with KEDA", and its chart); the cache, `vllm:kv_cache_usage_perc` with 0.5 (AIBrix 0.7, "Metric-based
Autoscaling", its sample manifests).
"""

from collections.abc import Sequence

from wattkeeper.domain.observation import PodReading
from wattkeeper.rivals.hpa_behavior import Behavior, Pace
from wattkeeper.rivals.hpa_metrics import TOLERANCE, Metric, PodsMetric
from wattkeeper.rivals.readings import STALE_SECONDS, Query
from wattkeeper.rivals.settings import PolicySettingsError, at_least, positive
from wattkeeper.rivals.types import Decision, Look, Sight

SYNC_SECONDS = 15.0


class HorizontalPodAutoscaler:
    """One autoscaler object with its controller's memory."""

    def __init__(
        self,
        *,
        name: str,
        metrics: Sequence[Metric],
        min_replicas: int,
        max_replicas: int,
        behavior: Behavior | None = None,
        tolerance: float = TOLERANCE,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        at_least("min_replicas", min_replicas, 1)
        at_least("max_replicas", max_replicas, min_replicas)
        at_least("tolerance", tolerance, 0.0)
        positive("stale_seconds", stale_seconds)
        if not metrics:
            raise PolicySettingsError(f"{name}: an autoscaler needs at least one metric")
        self.name, self.sight = name, Sight.LAST
        self.period_seconds = SYNC_SECONDS
        self._metrics = tuple(metrics)
        self._minimum, self._maximum = min_replicas, max_replicas
        self._tolerance = tolerance
        self._pace = Pace(behavior or Behavior())
        self._query = Query(stale_seconds=stale_seconds)

    def decide(self, look: Look) -> Decision:
        """One sync of the controller. Without any metric nothing changes."""
        current = look.desired_replicas
        if current == 0:
            return Decision(reason="autoscaling is off while the workload is scaled to 0")
        if current > self._maximum or current < self._minimum:
            return self._to(look, min(max(current, self._minimum), self._maximum), "out of bounds")
        readings = self._query.readings(look)
        proposals = {metric.name: metric.propose(look, readings, tolerance=self._tolerance) for metric in self._metrics}
        known = {name: replicas for name, replicas in proposals.items() if replicas is not None}
        unknown = ", ".join(name for name in proposals if name not in known)
        if not known:
            return Decision(reason=f"no value of {unknown}")
        leader = max(known, key=lambda name: known[name])
        wanted = known[leader]
        if unknown and wanted < current:
            return Decision(reason=f"no value of {unknown}, and the others ask for fewer pods")
        stable = self._pace.stabilise(look.time_seconds, current=current, wanted=wanted)
        limited = self._pace.limit(
            look.time_seconds, current=current, wanted=stable, minimum=self._minimum, maximum=self._maximum
        )
        return self._to(look, limited, f"{leader} asks for {wanted}")

    def _to(self, look: Look, replicas: int, reason: str) -> Decision:
        if replicas != look.desired_replicas:
            self._pace.changed(look.time_seconds, before=look.desired_replicas, after=replicas)
        return Decision(replicas=replicas, reason=reason)


def waiting_metric(target: float) -> PodsMetric:
    """Requests in the queue of each pod."""
    return PodsMetric(name="vllm:num_requests_waiting", target=target, value=_waiting)


def kv_usage_metric(target: float) -> PodsMetric:
    """Share of each pod's KV blocks in use, 0..1."""
    if target > 1.0:
        raise PolicySettingsError(f"the target of KV usage is a share in 0..1, not {target:g}")
    return PodsMetric(name="vllm:kv_cache_usage_perc", target=target, value=_kv_usage)


def _waiting(reading: PodReading) -> float | None:
    return reading.waiting


def _kv_usage(reading: PodReading) -> float | None:
    return reading.kv_usage
