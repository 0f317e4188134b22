"""How fast a horizontal pod autoscaler may move: stabilisation windows and scaling policies.

Source: Kubernetes 1.35 documentation, "Horizontal Pod Autoscaling", sections "Configurable scaling behavior" and
"Default Behavior"; limits of the fields from the API reference "HorizontalPodAutoscaler v2". Up: no window, the larger
of 100 % and 4 pods each 15 s. Down: the highest recommendation of the last 300 s, then all pods each 15 s.
"""

import enum
import math
from dataclasses import dataclass, field

from wattkeeper.rivals.settings import PolicySettingsError

_LONGEST_PERIOD_SECONDS = 1800.0
_LONGEST_WINDOW_SECONDS = 3600.0
_ROUNDING_SECONDS = 1e-6


class Unit(enum.Enum):
    """What the value of a scaling policy counts."""

    PODS = "Pods"
    PERCENT = "Percent"


class Select(enum.Enum):
    """Which of several scaling policies holds."""

    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


@dataclass(frozen=True, kw_only=True)
class ScalingPolicy:
    """At most so many pods, or percent of the pods at the start of the period, in `period_seconds`."""

    unit: Unit
    value: int
    period_seconds: float = 15.0

    def __post_init__(self) -> None:
        if self.value <= 0 or not 0.0 < self.period_seconds <= _LONGEST_PERIOD_SECONDS:
            raise PolicySettingsError(
                f"a scaling policy needs a value above 0 and a period up to {_LONGEST_PERIOD_SECONDS:g} s, not "
                f"{self.value} in {self.period_seconds:g} s"
            )


@dataclass(frozen=True, kw_only=True)
class ScalingRules:
    """One direction."""

    window_seconds: float
    """`stabilizationWindowSeconds`."""
    policies: tuple[ScalingPolicy, ...]
    select: Select = Select.MAX

    def __post_init__(self) -> None:
        if not 0.0 <= self.window_seconds <= _LONGEST_WINDOW_SECONDS:
            raise PolicySettingsError(
                f"a stabilisation window must lie in 0..{_LONGEST_WINDOW_SECONDS:g} s, not {self.window_seconds:g}"
            )
        if not self.policies:
            raise PolicySettingsError("a scaling direction needs at least one policy; to forbid it select Disabled")


UP = ScalingRules(
    window_seconds=0.0,
    policies=(ScalingPolicy(unit=Unit.PERCENT, value=100), ScalingPolicy(unit=Unit.PODS, value=4)),
)
DOWN = ScalingRules(window_seconds=300.0, policies=(ScalingPolicy(unit=Unit.PERCENT, value=100),))


@dataclass(frozen=True, kw_only=True)
class Behavior:
    """`spec.behavior`."""

    up: ScalingRules = UP
    down: ScalingRules = DOWN


@dataclass
class Pace:
    """Remembers recommendations and changes of one autoscaler, and holds it to its behaviour. Times only grow."""

    behavior: Behavior
    recommendations: list[tuple[float, int]] = field(default_factory=list)
    changes: list[tuple[float, int]] = field(default_factory=list)
    """Times of changes and how many pods they added; negative: removed."""

    def stabilise(self, time_seconds: float, *, current: int, wanted: int) -> int:
        """The step from `current` that no recommendation inside the windows speaks against."""
        if not self.recommendations:
            self.recommendations.append((time_seconds, current))
        up = min([wanted, *self._recent(time_seconds, self.behavior.up.window_seconds)])
        down = max([wanted, *self._recent(time_seconds, self.behavior.down.window_seconds)])
        oldest = time_seconds - max(self.behavior.up.window_seconds, self.behavior.down.window_seconds)
        self.recommendations = [each for each in self.recommendations if each[0] > oldest + _ROUNDING_SECONDS]
        self.recommendations.append((time_seconds, wanted))
        return min(max(current, up), down)

    def limit(self, time_seconds: float, *, current: int, wanted: int, minimum: int, maximum: int) -> int:
        """As far towards `wanted` as the scaling policies and bounds allow at once."""
        if wanted > current:
            return min(wanted, maximum, max(self._highest(time_seconds, current), current))
        if wanted < current:
            return max(wanted, minimum, min(self._lowest(time_seconds, current), current))
        return wanted

    def changed(self, time_seconds: float, *, before: int, after: int) -> None:
        """Note a change that was made."""
        longest = max(policy.period_seconds for policy in (*self.behavior.up.policies, *self.behavior.down.policies))
        self.changes = [each for each in self.changes if each[0] > time_seconds - longest]
        self.changes.append((time_seconds, after - before))

    def _recent(self, time_seconds: float, window_seconds: float) -> list[int]:
        after = time_seconds - window_seconds + _ROUNDING_SECONDS
        return [replicas for when, replicas in self.recommendations if when > after]

    def _at_start(self, time_seconds: float, current: int, period_seconds: float) -> int:
        """Replicas when the period began."""
        after = time_seconds - period_seconds + _ROUNDING_SECONDS
        return current - sum(added for when, added in self.changes if when > after)

    def _highest(self, time_seconds: float, current: int) -> int:
        rules, reach = self.behavior.up, []
        if rules.select is Select.DISABLED:
            return current
        for policy in rules.policies:
            start = self._at_start(time_seconds, current, policy.period_seconds)
            by_percent = math.ceil(start * (100 + policy.value) / 100)
            reach.append(start + policy.value if policy.unit is Unit.PODS else by_percent)
        return max(reach) if rules.select is Select.MAX else min(reach)

    def _lowest(self, time_seconds: float, current: int) -> int:
        rules, reach = self.behavior.down, []
        if rules.select is Select.DISABLED:
            return current
        for policy in rules.policies:
            start = self._at_start(time_seconds, current, policy.period_seconds)
            by_percent = int(start * (100 - policy.value) / 100)
            reach.append(start - policy.value if policy.unit is Unit.PODS else by_percent)
        return min(reach) if rules.select is Select.MAX else max(reach)
