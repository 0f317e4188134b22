"""Replays: lever settings driven through the exact replica stepper, and what came of them."""

import enum
import math
from dataclasses import dataclass, field

from wattkeeper.domain.engine import EngineSettings


@dataclass(frozen=True, kw_only=True)
class ReplaySetting:
    """What is replayed: one point of the lever space, with the defaults of the engine filled in."""

    replicas: int
    power_cap_watts: float | None = None
    """Per GPU; None = the card's default limit."""
    clock_mhz: float | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)
    max_num_seqs: int
    """Admission limit in force (the smaller one where `max_num_active_seqs` is set)."""
    max_num_batched_tokens: int
    kv_capacity_tokens: float
    """Of one replica."""


class ReplayStatus(enum.Enum):
    """Whether a replay gave an answer."""

    DONE = "Done"
    TOO_FEW = "TooFewRequests"
    """Too few requests for a bound on the percentile: the point estimates are there, the upper ones infinite."""
    INVALID = "Invalid"
    """Its input cannot be simulated; the message says why, all figures are infinite."""


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """What clients of a replayed setting would have seen. A request that can never run counts as infinitely late."""

    status: ReplayStatus
    message: str = ""
    ttft_percentile: float = 95.0
    tpot_percentile: float = 95.0
    ttft_seconds: float = math.inf
    """At its percentile."""
    ttft_upper_seconds: float = math.inf
    """Bound that the true percentile of this process exceeds one time in ten: sampling error only."""
    tpot_seconds: float = math.inf
    tpot_upper_seconds: float = math.inf
    attainment: float = 0.0
    """Share of requests within both targets, 0..1."""
    attainment_lower: float = 0.0
    preemptions_per_request: float = 0.0
    requests: int = 0
    """Counted, after warm-up."""
    clock_ratio: float = 1.0
    """Mean clock over the largest while iterating, after lock and cap."""
    recorded: bool = False
    """True where recorded arrivals drove it, not a process made up from their dispersion."""
    cost_seconds: float = 0.0
    """Processor time."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A replay and what it was made for: evidence about the setting, and about all that bear more or less."""

    setting: ReplaySetting
    requests_per_second: float
    """Of the whole service."""
    time_seconds: float
    """Decision time of the measurements that it was driven with."""
    prompt_tokens: float
    """Mean lengths and prefix-hit share of the workload."""
    output_tokens: float
    prefix_hit_ratio: float
    iteration_seconds: float
    """Of a reference iteration with the profile that it was simulated with: profiles are refitted while running."""
    result: ReplayResult


@dataclass(frozen=True, kw_only=True)
class ReplayWish:
    """A replay that a plan would like to see."""

    setting: ReplaySetting
    requests_per_second: float
    """Rounded up, so that its evidence holds while the rate jitters."""
    slack: float
    """Least relative distance of the analytic latencies, margin included, to their targets: smaller is riskier."""
    evidence_age_seconds: float | None
    """Of what is known about this setting; None: nothing is."""
