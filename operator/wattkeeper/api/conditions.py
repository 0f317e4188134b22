"""Conditions: their types, their reasons, and how a list of them is updated.

Follows the Kubernetes API conventions: a condition keeps its lastTransitionTime while its status does not change.
"""

import enum
from collections.abc import Sequence

from pydantic import Field

from wattkeeper.api.base import ApiModel


class ConditionType(enum.StrEnum):
    """What is said of a service. `Ready` is computed from the others."""

    READY = "Ready"
    TARGET_RESOLVED = "TargetResolved"
    METRICS_AVAILABLE = "MetricsAvailable"
    MODEL_TRUSTED = "ModelTrusted"
    SLO_SATISFIABLE = "SLOSatisfiable"
    SLO_MET = "SLOMet"
    SLO_CHECKED = "SLOChecked"
    ROLLOUT = "Rollout"
    POWER_ENFORCED = "PowerEnforced"
    CONFLICT = "Conflict"


class Status(enum.StrEnum):
    """Status of a condition."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """One condition in the form all Kubernetes tools understand."""

    type: str = Field(description="What the condition speaks of.", max_length=64)
    status: Status = Field(description="True, False or Unknown.")
    reason: str = Field(description="A CamelCase word for programs.", max_length=128)
    message: str = Field(default="", description="A sentence for people.", max_length=4096)
    last_transition_time: str = Field(default="", description="When the status last changed (RFC 3339).", max_length=40)
    observed_generation: int = Field(default=0, description="Generation of the object that this speaks of.")


def update(
    existing: Sequence[Condition], desired: Sequence[Condition], *, now: str, generation: int
) -> tuple[Condition, ...]:
    """`desired` stamped with times: a condition whose status stays keeps its time. Types not desired are dropped."""
    before = {condition.type: condition for condition in existing}
    stamped = []
    for condition in desired:
        old = before.get(condition.type)
        time = old.last_transition_time if old is not None and old.status == condition.status else now
        stamped.append(
            condition.model_copy(update={"last_transition_time": time or now, "observed_generation": generation})
        )
    return tuple(stamped)
