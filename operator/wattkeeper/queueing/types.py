"""Candidates and predictions of the SLA check: numpy arrays, one entry per candidate."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray, Workload
from wattkeeper.physics.profile import ServingProfile

IndexArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]
ObjectArray = npt.NDArray[np.object_]


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Lever settings to be judged; all arrays are float64 of one shape (N,)."""

    replicas: FloatArray
    power_cap_watts: FloatArray
    """Per GPU; nan = the card's default limit."""
    clock_ratio: FloatArray
    """Requested clock lock over the largest clock, in (0, 1]; 1 = none."""
    max_num_seqs: FloatArray
    max_num_batched_tokens: FloatArray
    kv_capacity_tokens: FloatArray

    def __post_init__(self) -> None:
        shapes = {field.name: np.shape(getattr(self, field.name)) for field in fields(self)}
        if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 1:
            raise ValueError(f"candidates must be arrays of one shape (N,): {shapes}")

    def __len__(self) -> int:
        return len(self.replicas)

    def take(self, index: IndexArray | BoolArray) -> "Candidates":
        """The candidates that an index or a mask picks."""
        return Candidates(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @staticmethod
    def joined(parts: "Sequence[Candidates]") -> "Candidates":
        """All candidates of several sets, in their order."""
        names = [field.name for field in fields(Candidates)]
        return Candidates(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, kw_only=True)
class SlaQuery:
    """The question about one service: how each candidate would serve this workload."""

    profile: ServingProfile
    workload: Workload
    candidates: Candidates
    ttft_percentile: float
    """Percentiles lie in (0, 100), 99.9 at most being sensible."""
    tpot_percentile: float

    def __post_init__(self) -> None:
        for name, percentile in (("ttft", self.ttft_percentile), ("tpot", self.tpot_percentile)):
            if not 0.0 < percentile < 100.0:
                raise ValueError(f"{name}_percentile must lie between 0 and 100, not {percentile}")


@dataclass(frozen=True, kw_only=True)
class SlaPrediction:
    """What is expected of each candidate; arrays of shape (N,), rates and token counts per replica."""

    stable: BoolArray
    """False where the rate exceeds what the replicas can serve for long; latencies are then inf."""
    capacity_rps: FloatArray
    """Requests per second that all replicas of the candidate together can serve."""
    utilisation: FloatArray
    """Rate over capacity; may exceed 1."""
    ttft_seconds: FloatArray
    """At the asked percentile."""
    tpot_seconds: FloatArray
    """At the asked percentile over requests of each one's mean time per output token."""
    ttft_upper_seconds: FloatArray
    """What TTFT stays below in nine replicas of ten like this one: what a verdict rests on. At least `ttft_seconds`."""
    tpot_upper_seconds: FloatArray
    widening: FloatArray
    """By which share the upper bounds were widened because the candidate lies outside the validated range; 0 inside."""
    batch: FloatArray
    """Mean decoding sequences while the replica iterates."""
    busy: FloatArray
    """Share of time in which the replica iterates."""
    step_seconds: FloatArray
    """Mean iteration time while it iterates, prefill work included."""
    kv_tokens: FloatArray
    """Mean KV tokens resident while it iterates."""
    clock_ratio: FloatArray
    """Mean clock over the largest, after lock and cap."""
    prefill_tokens_per_second: FloatArray
    """Computed prompt tokens (prefix hits left out), averaged over all time."""
    decode_tokens_per_second: FloatArray
    """Tokens from decode steps (each answer's first comes from prefill), averaged over all time."""
    preemption_risk: FloatArray
    """Probability that the running requests want more KV than there is, at a random time, 0..1."""
    binding: ObjectArray
    """`domain.plan.Binding`: why the candidate is not stable (Stability, KvCache, RateUnknown, LimitsContradict); None
    where it is stable."""

    def part(self, rows: slice) -> "SlaPrediction":
        """The predictions of some candidates; views, not copies."""
        return SlaPrediction(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})
