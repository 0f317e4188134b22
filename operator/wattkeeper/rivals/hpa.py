"""The HorizontalPodAutoscaler of Kubernetes (autoscaling/v2), and the one that KEDA makes of a ScaledObject.

Rules as in "Horizontal Pod Autoscaling" of the Kubernetes documentation (v1.34) and in the behaviour of its controller:

- every 15 s; desired = ceil(current x metric / target); nothing is done while that ratio is within 10 % of one;
- a metric per pod (`AverageValue` of Pods metrics) is averaged over ready pods that report; where the ratio says up,
  pods that are not ready or do not report count as zero; where it says down, pods that do not report count as being at
  their target; if that turns the direction round, nothing is done;
- an external metric with `AverageValue` (KEDA's) is one sum, divided by the replicas that there are;
- of several metrics the largest answer counts; if one of them is missing, there is no scaling down;
- scaling down takes the largest answer of the last 300 s, scaling up the last one;
- at most the larger of doubling and 4 pods are added in 15 s; any number may go in 15 s.

KEDA ("Scaling Deployments", v2.18) only feeds the HPA here: `pollingInterval` and `cooldownPeriod` concern the step
between zero and one replica, which is not taken. After `failureThreshold` (3) failed readings its fallback asks for a
fixed number of replicas where one is configured; without one the HPA keeps what there is.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wattkeeper.domain.observation import PodReading
from wattkeeper.rivals.types import Decision, Look

SYNC_SECONDS = 15.0
TOLERANCE = 0.1
DOWN_WINDOW_SECONDS = 300.0
_MAX_AGE_SECONDS = 60.0
"""The metrics API answers with nothing where a pod's series is older."""
_PERIOD_SECONDS = 15.0
_PERCENT, _PODS = 1.0, 4


@dataclass(frozen=True, kw_only=True)
class PodsMetric:
    """A value per pod with a target for its average."""

    read: Callable[[PodReading], float | None]
    target: float

    def __post_init__(self) -> None:
        _positive("target of a metric per pod", self.target)

    def replicas(self, look: Look, current: int) -> int | None:
        """What this metric asks for; None where no ready pod reports it."""
        values = {key: value for key in look.ready_pods if (value := _value(look, key, self.read)) is not None}
        if not values:
            return None
        missing = len(look.ready_pods) - len(values)
        starting = len(look.starting_pods)
        ratio = sum(values.values()) / len(values) / self.target
        up = ratio > 1.0
        if not (missing or (up and starting)):
            return current if abs(ratio - 1.0) <= TOLERANCE else math.ceil(ratio * len(values))
        filled = missing * (0.0 if up else self.target)
        count = len(values) + missing + (starting if up else 0)
        again = (sum(values.values()) + filled) / count / self.target
        if abs(again - 1.0) <= TOLERANCE or (again > 1.0) != up:
            return current
        wanted = math.ceil(again * count)
        return current if (wanted < current) == up and wanted != current else wanted


@dataclass(frozen=True, kw_only=True)
class SumMetric:
    """One number for the whole service with a target per replica."""

    read: Callable[[PodReading], float | None]
    target: float

    def __post_init__(self) -> None:
        _positive("target per replica", self.target)

    def replicas(self, look: Look, current: int) -> int | None:
        """What this metric asks for; None where Prometheus has no series of it."""
        pods = (*look.ready_pods, *look.draining_pods)
        values = [value for key in pods if (value := _value(look, key, self.read)) is not None]
        if not values:
            return None
        usage = sum(values)
        if current and abs(usage / (self.target * current) - 1.0) <= TOLERANCE:
            return current
        return math.ceil(usage / self.target)


@dataclass(kw_only=True)
class Stabiliser:
    """Limits and stabilisation of an HPA's answers."""

    minimum: int
    maximum: int
    down_window_seconds: float = DOWN_WINDOW_SECONDS
    up_window_seconds: float = 0.0
    _answers: deque[tuple[float, int]] = field(default_factory=deque)
    _added: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if not 0 < self.minimum <= self.maximum:
            raise ValueError(f"minReplicas {self.minimum} and maxReplicas {self.maximum} are no bounds")

    def settle(self, wanted: int, current: int, now_seconds: float) -> int:
        """The replica count to write."""
        longest = max(self.down_window_seconds, self.up_window_seconds)
        while self._answers and self._answers[0][0] < now_seconds - longest:
            self._answers.popleft()
        self._answers.append((now_seconds, wanted))
        lowest = min(answer for time, answer in self._answers if time >= now_seconds - self.up_window_seconds)
        highest = max(answer for time, answer in self._answers if time >= now_seconds - self.down_window_seconds)
        found = current
        if found < lowest:
            found = lowest
        if found > highest:
            found = highest
        while self._added and self._added[0][0] <= now_seconds - _PERIOD_SECONDS:
            self._added.popleft()
        if found > current:
            before = current - sum(count for _, count in self._added)
            found = min(found, max(math.ceil(before * (1.0 + _PERCENT)), before + _PODS))
        found = min(max(found, self.minimum), self.maximum)
        if found > current:
            self._added.append((now_seconds, found - current))
        return found


@dataclass(kw_only=True)
class Autoscaler:
    """An HPA over one or more metrics."""

    name: str
    metrics: Sequence[PodsMetric | SumMetric]
    stabiliser: Stabiliser
    power_cap_watts: float | None = None
    period_seconds: float = SYNC_SECONDS

    def decide(self, look: Look) -> Decision:
        """Without any metric: what there is, as the controller does."""
        current = look.desired_replicas
        answers = [metric.replicas(look, current) for metric in self.metrics]
        known = [answer for answer in answers if answer is not None]
        if not known:
            return Decision(power_cap_watts=self.power_cap_watts, reason="FailedGetMetrics")
        wanted = max(known)
        if len(known) < len(answers) and wanted < current:
            wanted = current
        replicas = self.stabiliser.settle(wanted, current, look.time_seconds)
        return Decision(replicas=replicas, power_cap_watts=self.power_cap_watts)


def waiting(reading: PodReading) -> float | None:
    """`vllm:num_requests_waiting`."""
    return reading.waiting


def kv_usage(reading: PodReading) -> float | None:
    """`vllm:kv_cache_usage_perc`."""
    return reading.kv_usage


def in_flight(reading: PodReading) -> float | None:
    """Requests running and waiting."""
    if reading.running is None or reading.waiting is None:
        return None
    return reading.running + reading.waiting


def _value(look: Look, key: tuple[str, str], read: Callable[[PodReading], float | None]) -> float | None:
    if look.snapshot is None:
        return None
    reading = look.snapshot.pods.get(key)
    if reading is None or reading.age_seconds > _MAX_AGE_SECONDS:
        return None
    return read(reading)


def _positive(what: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"the {what} must be positive and finite, not {value}")
