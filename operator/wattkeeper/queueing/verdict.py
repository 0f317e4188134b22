"""Named verdicts of the fluid model: why a load cannot be served, and which inequality fails by how much."""

import enum
import math
from dataclasses import dataclass

ROUNDING = 1e-9
"""Relative difference that counts as equal."""


class Cause(enum.Enum):
    """Why a point of the fluid model is what it is; `NONE` and `IDLE` are good news, all others are not."""

    NONE = "None"
    IDLE = "Idle"
    """Nothing arrives: a real zero."""
    NO_CLASSES = "NoClasses"
    SHAPES_DISAGREE = "ShapesDisagree"
    RATE_NOT_FINITE = "RateNotFinite"
    RATE_NEGATIVE = "RateNegative"
    LENGTH_INVALID = "LengthInvalid"
    """A prompt of no tokens, a negative or not finite length, or more cached tokens than the prompt has."""
    COEFFICIENTS_INVALID = "CoefficientsInvalid"
    """The fixed time of a step is not positive, or a term is negative or not finite."""
    LIMITS_CONTRADICT = "LimitsContradict"
    """A limit below one or not a number, or a token budget below the request limit (vLLM refuses to start)."""
    THRESHOLDS_INVALID = "ThresholdsInvalid"
    REQUEST_EXCEEDS_KV = "RequestExceedsKv"
    """One request at its full length does not fit the KV memory."""
    REQUEST_EXCEEDS_MODEL_LENGTH = "RequestExceedsModelLength"
    OVERLOAD = "Overload"
    """rho >= 1: more work arrives than the engine does, whatever the limits."""
    KV_MEMORY = "KvMemory"
    SLOTS = "Slots"
    TOKEN_BUDGET = "TokenBudget"  # noqa: S105 (no secret)
    CONDITION_FAILS = "ConditionFails"
    """The load is stable, but these thresholds miss one of their conditions."""


class Constraint(enum.Enum):
    """What a growing load meets first."""

    COMPUTE = "Compute"
    KV_MEMORY = "KvMemory"
    SLOTS = "Slots"
    TOKEN_BUDGET = "TokenBudget"  # noqa: S105 (no secret)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One inequality `value <= bound` (`<` where strict), with its name and in words; numbers are never NaN."""

    name: str
    statement: str
    value: float
    bound: float
    strict: bool = False

    @property
    def holds(self) -> bool:
        """True where the inequality is met (up to rounding where not strict); infinite values meet nothing."""
        if math.isinf(self.value):
            return False
        return self.value < self.bound if self.strict else self.value <= self.bound * (1.0 + ROUNDING)

    @property
    def excess(self) -> float:
        """`value / bound - 1`: by which share the bound is missed (positive) or kept (negative)."""
        if math.isinf(self.value):
            return math.inf
        if math.isinf(self.bound):
            return -1.0
        if self.bound > 0:
            return self.value / self.bound - 1.0
        return math.inf if self.value > self.bound else 0.0

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "fails"
        return (
            f"{self.name} {verdict}: {self.statement}, {self.value:.6g} against {self.bound:.6g} ({self.excess:+.1%})"
        )


def failures(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Those that do not hold, the worst miss first."""
    return tuple(sorted((each for each in conditions if not each.holds), key=lambda each: -each.excess))
