"""How many replicas one metric asks for: the horizontal pod autoscaler's arithmetic.

Source: Kubernetes 1.35 documentation, "Horizontal Pod Autoscaling", section "Algorithm details", and the behaviour of
the controller's replica calculator where the page is silent: values are whole thousandths; of custom metrics every pod
with a value counts, and a pod that runs without one (a vLLM pod that loads its model does) is a missing pod; an
external metric with an average target is divided by all pods that are not going away.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from wattkeeper.domain.observation import PodReading
from wattkeeper.rivals.readings import Readings
from wattkeeper.rivals.settings import positive
from wattkeeper.rivals.types import Look

TOLERANCE = 0.1
"""`--horizontal-pod-autoscaler-tolerance`."""


class Metric(Protocol):
    """One entry of `spec.metrics`."""

    @property
    def name(self) -> str:
        """As in the manifest."""
        ...

    def propose(self, look: Look, readings: Readings | None, *, tolerance: float) -> int | None:
        """Replicas that this metric asks for; None: it could not be read."""
        ...


@dataclass(frozen=True, kw_only=True)
class PodsMetric:
    """`type: Pods` with an `averageValue`: the mean over the pods against `target`."""

    name: str
    target: float
    value: Callable[[PodReading], float | None]

    def __post_init__(self) -> None:
        positive(f"target of {self.name}", self.target)

    def propose(self, look: Look, readings: Readings | None, *, tolerance: float) -> int | None:
        """None where no pod has a value."""
        if readings is None:
            return None
        pods = (*look.ready_pods, *look.starting_pods)
        found = [_thousandths(value) for key in pods if (value := self._of(readings, key)) is not None]
        if not found:
            return None
        target, missing = _thousandths(self.target), len(pods) - len(found)
        ratio = (sum(found) // len(found)) / target
        if missing == 0:
            return look.desired_replicas if within(ratio, tolerance) else math.ceil(ratio * len(found))
        # Pods without a value: on the target where less is asked for, idle where more is.
        filled = sum(found) + missing * (target if ratio < 1.0 else 0)
        careful = ratio if ratio == 1.0 else (filled // len(pods)) / target
        if within(careful, tolerance) or (ratio < 1.0) != (careful < 1.0):
            return look.desired_replicas
        replicas = math.ceil(careful * len(pods))
        turned = replicas > look.desired_replicas if careful < 1.0 else replicas < look.desired_replicas
        return look.desired_replicas if turned else replicas

    def _of(self, readings: Mapping[tuple[str, str], PodReading], key: tuple[str, str]) -> float | None:
        reading = readings.get(key)
        return None if reading is None else self.value(reading)


@dataclass(frozen=True, kw_only=True)
class ExternalMetric:
    """`type: External` with an `averageValue`: one number for the whole service, per pod against `target`."""

    name: str
    target: float
    value: Callable[[Look, Readings | None], float | None]

    def __post_init__(self) -> None:
        positive(f"target of {self.name}", self.target)

    def propose(self, look: Look, readings: Readings | None, *, tolerance: float) -> int | None:
        """None where the metric has no value."""
        value = self.value(look, readings)
        if value is None:
            return None
        usage, target = _thousandths(value), _thousandths(self.target)
        pods = len(look.ready_pods) + len(look.starting_pods)
        if pods and within(usage / (target * pods), tolerance):
            return pods
        return math.ceil(usage / target)


def within(ratio: float, tolerance: float) -> bool:
    """Whether a ratio is too close to 1 to act on."""
    return 1.0 - tolerance <= ratio <= 1.0 + tolerance


def _thousandths(value: float) -> int:
    """A Kubernetes quantity in thousandths; smaller parts round up, as quantities do."""
    return math.ceil(value * 1000.0 - 1e-6)
