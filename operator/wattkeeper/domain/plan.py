"""Goals, levers and decisions: what a plan may move, where things stand, and what was decided and why."""

import enum
from dataclasses import dataclass, field

from wattkeeper.domain.engine import EngineChange, EngineSettings
from wattkeeper.domain.replay import Replayed, ReplayWish


@dataclass(frozen=True, kw_only=True)
class LatencyTarget:
    """`percentile` (0..100) of the requests must see at most `seconds`."""

    percentile: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Slo:
    """Latency objective of a service; at least one of the two is set."""

    ttft: LatencyTarget | None
    tpot: LatencyTarget | None
    min_attainment: float = 0.99


class ReplicaControl(enum.Enum):
    """Who writes the replica count."""

    DIRECT = "Direct"
    EXTERNAL = "External"


@dataclass(frozen=True, kw_only=True)
class ReplicaLever:
    """Bounds of the replica count."""

    minimum: int
    maximum: int
    control: ReplicaControl = ReplicaControl.DIRECT


@dataclass(frozen=True, kw_only=True)
class RangeLever:
    """A bounded, stepped quantity: watts of a power cap, or MHz of a clock lock."""

    minimum: float
    maximum: float
    step: float

    def grid(self) -> tuple[float, ...]:
        """All values from minimum to maximum, both included."""
        values = []
        value = self.minimum
        while value < self.maximum - 1e-9:
            values.append(value)
            value += self.step
        return (*values, self.maximum)


@dataclass(frozen=True, kw_only=True)
class EngineLever:
    """Values that engine arguments may take; an empty tuple: not a lever."""

    max_num_seqs: tuple[int, ...] = ()
    max_num_batched_tokens: tuple[int, ...] = ()
    kv_cache_memory_bytes: tuple[int, ...] = ()
    gpu_memory_utilization: tuple[float, ...] = ()
    kv_cache_dtype: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Levers:
    """What the user allows to be moved; None: leave alone."""

    replicas: ReplicaLever | None = None
    power_cap: RangeLever | None = None
    clock_lock: RangeLever | None = None
    engine: EngineLever = field(default_factory=EngineLever)
    rollout_min_interval_seconds: float = 1800.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """One point of the lever space: what is in place, or what is wanted."""

    replicas: int
    power_cap_watts: float | None = None
    """Per GPU; None = the card's default limit."""
    clock_mhz: float | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the models expect of a target at the planned rate."""

    power_watts: float
    """All GPUs of all replicas."""
    power_interval_watts: tuple[float, float]
    ttft_seconds: float
    tpot_seconds: float
    utilisation: float
    """Planned rate over the stable capacity of the target, 0..1."""
    joules_per_token: float | None


class Binding(enum.Enum):
    """The constraint that stops a cheaper target."""

    NONE = "None"
    STABILITY = "Stability"
    KV_CACHE = "KvCache"
    TTFT = "Ttft"
    TPOT = "Tpot"
    PLANNED_LOAD = "PlannedLoad"
    MIN_REPLICAS = "MinReplicas"
    MAX_REPLICAS = "MaxReplicas"
    POWER_FLOOR = "PowerFloor"
    STABILISATION = "Stabilisation"
    ROLLOUT_COST = "RolloutCost"
    HYSTERESIS = "Hysteresis"
    EVIDENCE = "Evidence"
    RATE_UNKNOWN = "RateUnknown"
    """The rate is no number, or negative."""
    LIMITS_CONTRADICT = "LimitsContradict"
    """Engine arguments with which vLLM does not start: a token budget below the request limit, or a limit below one."""
    REPLAY = "Replay"
    """No replay shows yet that the next cheaper target meets the SLO, or one shows that it does not."""


@dataclass(frozen=True, kw_only=True)
class RunnerUp:
    """The best target that was not chosen, and why."""

    target: Target
    power_watts: float
    why_not: str


class PlanReason(enum.Enum):
    """Why this target: the same word goes to status, event and metric."""

    LEAST_ENERGY = "LeastEnergy"
    KEEP = "GainBelowHysteresis"
    STABILISING = "StabilisingScaleDown"
    GUARD_SLO = "SloAtRisk"
    GUARD_QUEUE = "QueueGrowing"
    GUARD_PREEMPTION = "Preempting"
    AWAITING_REPLAY = "AwaitingReplay"
    """A cheaper target is known; what is in place stays until a replay shows that it meets the SLO."""
    INFEASIBLE = "NoFeasiblePlan"
    HOLD_METRICS = "MetricsNotUsable"
    FULL_POWER = "MetricsLost"
    IDLE = "Idle"
    WARMING_UP = "NoWorkloadSeenYet"
    FAILED = "PlanningFailed"
    """The data of this service could not be worked with: full power, replicas held."""


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """What the analytic check says of a small change of a target, or of the load."""

    change: str
    ttft_seconds: float
    tpot_seconds: float
    utilisation: float
    violation: Binding
    """NONE where it would still meet the SLO with margin."""


@dataclass(frozen=True, kw_only=True)
class SlaCheck:
    """The check that a target passed: the analytic one with its margin, and the replay beside it."""

    margin: float
    """Relative; on both latencies."""
    load_ceiling: float
    ttft_upper_seconds: float
    """What was compared with the targets: the upper bound of the prediction with the margin."""
    tpot_upper_seconds: float
    replay: str
    """`planner.evidence.Standing` of the target; empty where no replay stage is configured."""
    replayed: Replayed | None
    what_if: tuple[WhatIf, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A decision for one service. `target` is always safe to apply as it stands."""

    target: Target
    engine_change: EngineChange
    reason: PlanReason
    message: str
    binding: Binding
    runner_up: RunnerUp | None
    prediction: Prediction | None
    planned_requests_per_second: float | None
    feasible: bool
    check: SlaCheck | None = None
    """None where no search was made."""
    wishes: tuple[ReplayWish, ...] = ()
    """Replays that would help the next plan, riskiest first, those of equal risk oldest first."""
