"""What kinds of factors there are. Known before acting is a matter of type: an outcome cannot become a feature.

A model may only learn from what is known before a decision is taken. What is measured afterwards (utilisation,
temperature, the realised batch) would make its scores on past data look good, and would be missing when it is asked.
"""

import enum
from dataclasses import dataclass


class Dimension(enum.Enum):
    """Part of the serving stack that a factor describes."""

    KV_CACHE = "KvCache"
    SCHEDULING = "Scheduling"
    SYSTEM = "System"
    WORKLOAD = "Workload"


class Known(enum.Enum):
    """When the value of a factor is known, always before acting."""

    CONFIGURED = "Configured"
    """Follows from settings and catalogue."""
    OBSERVED = "Observed"
    """Measured on the running service before a decision."""
    PREDICTED = "Predicted"
    """Follows from a candidate through the queueing and iteration models."""


class Origin(enum.Enum):
    """Where the value of a factor comes from."""

    SPEC = "spec"
    """Settings of the service or of a candidate."""
    CATALOGUE = "catalogue"
    """Facts of model and card."""
    LIVE_METRIC = "live metric"
    PREDICTED = "predicted"


@dataclass(frozen=True, kw_only=True)
class FactorBefore:
    """A factor that is known before acting."""

    name: str
    dimension: Dimension
    unit: str
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class OutcomeFactor:
    """A factor that is known only after acting. It is no `FactorBefore`, so that no feature list can hold it."""

    name: str
    dimension: Dimension
    unit: str
    description: str
    instead: str
    """What is known before acting in its place."""


class OutcomeAsFeatureError(TypeError):
    """A model was to learn from what is known only after acting."""


def before_acting(*features: FactorBefore) -> None:
    """Check a model's feature list at run time, for callers that no type checker sees.

    Raises OutcomeAsFeatureError: one of them is an outcome, or no factor at all.
    """
    for each in features:
        given: object = each
        if isinstance(given, OutcomeFactor):
            raise OutcomeAsFeatureError(
                f"{given.name} is known only after acting and cannot be a feature: use {given.instead}"
            )
        if not isinstance(given, FactorBefore):
            raise OutcomeAsFeatureError(f"{given!r} is no factor that is known before acting")
