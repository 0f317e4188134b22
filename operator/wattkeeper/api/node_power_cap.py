"""NodePowerCap: the power limits wanted on one node's GPUs, and what the node's agent made of them.

Cluster-scoped, one per GPU node, named after it. The operator writes spec; the agent writes status and restores a GPU
when its entry goes or expires, so that a dead operator never leaves a card capped.
"""

from pydantic import Field

from wattkeeper.api.base import ApiModel
from wattkeeper.api.conditions import Condition


class CapEntry(ApiModel):
    """The limit wanted on one GPU."""

    uuid: str = Field(min_length=1, max_length=128, description="UUID of the GPU.")
    watts: float | None = Field(default=None, ge=50, le=1500, description="Power limit; absent: the card's default.")
    clock_mhz: float | None = Field(
        default=None, alias="clockMHz", ge=100, le=5000, description="Locked SM clock; absent: not locked."
    )
    owner: str = Field(min_length=1, max_length=507, description="The InferenceService that asks, as namespace/name.")
    expires_at: str = Field(min_length=1, max_length=40, description="The entry is void after this time (RFC 3339).")


class NodePowerCapSpec(ApiModel):
    """What is wanted on a node."""

    caps: list[CapEntry] = Field(
        default_factory=list, max_length=64, description="One entry per GPU; GPUs that are not listed are not touched."
    )


class DeviceStatus(ApiModel):
    """One GPU as the agent sees it. Watts."""

    uuid: str = Field(max_length=128, description="UUID of the GPU.")
    model: str | None = Field(default=None, max_length=128, description="Product name.")
    pods: list[str] = Field(default_factory=list, max_length=64, description="Pods on the GPU, as namespace/name.")
    min: float | None = Field(default=None, description="Lowest limit that the card accepts.")
    default: float | None = Field(default=None, description="The card's default limit.")
    max: float | None = Field(default=None, description="Highest limit that the card accepts.")
    requested: float | None = Field(default=None, description="Limit asked for.")
    clamped: float | None = Field(default=None, description="Limit after the card's bounds.")
    enforced: float | None = Field(default=None, description="Limit read back from the card.")
    measured: float | None = Field(default=None, description="Power drawn.")
    clock_mhz: float | None = Field(default=None, alias="clockMHz", description="SM clock.")


class NodePowerCapStatus(ApiModel):
    """What the agent reports."""

    observed_generation: int = Field(default=0, description="Generation of the spec that this status speaks of.")
    heartbeat: str | None = Field(default=None, description="When the agent last looked (RFC 3339).")
    summary: str | None = Field(
        default=None, max_length=128, description="The node in a few words, such as: 3 of 8 GPUs limited to 400-500 W."
    )
    devices: list[DeviceStatus] = Field(default_factory=list, max_length=64, description="GPUs of the node.")
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, description="What holds and what does not."
    )


class NodePowerCap(ApiModel):
    """Power limits of one node's GPUs."""

    spec: NodePowerCapSpec = Field(default_factory=NodePowerCapSpec, description="What is wanted.")
    status: NodePowerCapStatus = Field(default_factory=NodePowerCapStatus, description="What is.")
