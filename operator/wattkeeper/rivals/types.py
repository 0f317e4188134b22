"""What a policy sees of a fleet and what it may want, the same for the planner and for what it is compared with."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.telemetry.source import PodKey, Snapshot


@dataclass(frozen=True, kw_only=True)
class Look:
    """The fleet of one service at one moment, as its metrics pipeline and the API server show it."""

    time_seconds: float
    """Since the trace began."""
    snapshot: Snapshot | None
    """The last collection that arrived, with the ages of its readings; None: none yet."""
    desired_replicas: int
    """What the workload's `spec.replicas` says."""
    ready_pods: tuple[PodKey, ...]
    starting_pods: tuple[PodKey, ...] = ()
    """Scheduled or waiting for a GPU, not ready."""
    draining_pods: tuple[PodKey, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a policy wants from now on; None leaves a lever as it is."""

    replicas: int | None = None
    power_cap_watts: float | None = None
    """Limit of each GPU."""
    clock_mhz: float | None = None
    """Highest SM clock of each GPU."""
    gpu_limits: Mapping[str, tuple[float | None, float | None]] | None = None
    """(watts, MHz) by GPU UUID, of a policy that sets each by itself; GPUs that are not named have none."""
    engine: EngineSettings | None = None
    """Other engine arguments: a roll-out. Fields that are None take vLLM's default."""
    reason: str = ""


class Sight(enum.Enum):
    """Which snapshots a policy can tell apart. A policy says it as `sight`; one that does not has sight of all.

    A simulation leaves those out that nobody would see: what is decided stays the same.
    """

    NONE = enum.auto()
    """It looks at none."""
    LAST = enum.auto()
    """At the last one before each of its decisions."""
    ALL = enum.auto()


class Policy(Protocol):
    """Decides for one service every `period_seconds`. One object plays one run: it may remember."""

    @property
    def name(self) -> str:
        """As tables show it."""
        ...

    @property
    def period_seconds(self) -> float:
        """Between two decisions."""
        ...

    def decide(self, look: Look) -> Decision:
        """What to change now. Raises nothing on missing metrics: a policy says itself what it does without them."""
        ...
