"""KEDA with a Prometheus trigger on the requests in flight: running and waiting over all pods.

Source: KEDA 2.18 documentation, "ScaledObject specification", "Prometheus" scaler, and "Scaling Deployments" (caching
of metrics, activation). KEDA serves the trigger as an external metric with an average target; the autoscaler object
that it creates does the scaling, and asks for the value at each of its syncs. `pollingInterval` (30 s) decides how
often the trigger is looked at for going to and from zero, and how long a value is kept, with `useCachedMetrics` only.
`cooldownPeriod` acts on the last step to zero only. That step is left out here: `minReplicaCount` is at least 1,
because with no pod left nothing reports a request in flight and nothing would wake the service.

Threshold: 2 requests per pod (KServe 0.16 documentation, "Autoscale InferenceService with LLM metrics").

Without metrics: `ignoreNullValues` is true by default, so that a query without any series counts as 0. A source that
does not answer is an error: the autoscaler keeps its replicas, and after more than `failureThreshold` errors in a row
gets `fallback.replicas`, where a fallback is set; by default none is.
"""

from dataclasses import dataclass

from wattkeeper.rivals.hpa import SYNC_SECONDS, HorizontalPodAutoscaler
from wattkeeper.rivals.hpa_behavior import Behavior
from wattkeeper.rivals.hpa_metrics import ExternalMetric
from wattkeeper.rivals.readings import STALE_SECONDS, Readings
from wattkeeper.rivals.settings import at_least, positive
from wattkeeper.rivals.types import Decision, Look, Sight

POLLING_SECONDS = 30.0
THRESHOLD = 2.0


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """`spec.fallback` with its default behaviour `static`."""

    failure_threshold: int
    replicas: int

    def __post_init__(self) -> None:
        at_least("failure_threshold", self.failure_threshold, 0)
        at_least("fallback replicas", self.replicas, 0)


class ScaledObject:
    """One ScaledObject with the autoscaler beneath it."""

    def __init__(
        self,
        *,
        name: str,
        threshold: float,
        min_replicas: int,
        max_replicas: int,
        behavior: Behavior | None = None,
        polling_seconds: float = POLLING_SECONDS,
        use_cached_metrics: bool = False,
        ignore_null_values: bool = True,
        fallback: Fallback | None = None,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        positive("threshold", threshold)
        positive("polling_seconds", polling_seconds)
        self.name, self.sight = name, Sight.LAST
        self.period_seconds = SYNC_SECONDS
        self._threshold = threshold
        self._kept_seconds = polling_seconds if use_cached_metrics else 0.0
        self._ignore_null = ignore_null_values
        self._fallback = fallback
        self._failures = 0
        self._cached: tuple[float, float | None] | None = None
        self._autoscaler = HorizontalPodAutoscaler(
            name=name,
            metrics=(ExternalMetric(name="requests in flight", target=threshold, value=self._value),),
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            behavior=behavior,
            stale_seconds=stale_seconds,
        )

    def decide(self, look: Look) -> Decision:
        """One sync of the autoscaler beneath."""
        return self._autoscaler.decide(look)

    def _value(self, look: Look, readings: Readings | None) -> float | None:
        """What KEDA's metrics server answers; None: an error."""
        if self._cached is None or look.time_seconds - self._cached[0] >= self._kept_seconds:
            self._cached = (look.time_seconds, self._asked(readings))
        value = self._cached[1]
        self._failures = self._failures + 1 if value is None else 0
        if value is None and self._fallback is not None and self._failures > self._fallback.failure_threshold:
            return self._threshold * self._fallback.replicas
        return value

    def _asked(self, readings: Readings | None) -> float | None:
        """What the query returns: a sum over the pods that have both series."""
        if readings is None:
            return None
        found = [
            reading.running + reading.waiting
            for reading in readings.values()
            if reading.running is not None and reading.waiting is not None
        ]
        return sum(found) if found or self._ignore_null else None
