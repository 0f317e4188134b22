"""Steady operating points of a replica, from a measured run or from a planner's question: one form for both.

What trains the model and what asks it must be built by the same code, else the learned correction is applied to other
quantities than it was learned on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray, Workload
from wattkeeper.energy.calibration import Calibration
from wattkeeper.physics import power, step
from wattkeeper.physics.profile import ServingProfile

IndexArray = npt.NDArray[np.integer[Any]]


class CandidateArrays(Protocol):
    """The parts of `queueing.types.Candidates` that energy depends on; all (N,)."""

    @property
    def replicas(self) -> FloatArray:
        """Of the service."""

    @property
    def power_cap_watts(self) -> FloatArray:
        """Per GPU; NaN = the card's default limit."""

    @property
    def max_num_seqs(self) -> FloatArray:
        """Admission limit of a replica."""

    @property
    def kv_capacity_tokens(self) -> FloatArray:
        """Per replica."""


class SlaArrays(Protocol):
    """The parts of `queueing.types.SlaPrediction` that energy depends on; all (N,), per replica."""

    @property
    def stable(self) -> npt.NDArray[np.bool_]:
        """False where the replicas cannot keep up: they then iterate all the time."""

    @property
    def batch(self) -> FloatArray:
        """Mean decoding sequences while busy."""

    @property
    def busy(self) -> FloatArray:
        """Share of time an iteration runs, 0..1."""

    @property
    def step_seconds(self) -> FloatArray:
        """Mean time of an iteration."""

    @property
    def kv_tokens(self) -> FloatArray:
        """Mean resident tokens."""

    @property
    def clock_ratio(self) -> FloatArray:
        """Effective clock over the card's highest."""

    @property
    def prefill_tokens_per_second(self) -> FloatArray:
        """Computed prompt tokens, averaged over all time."""


@dataclass(frozen=True, kw_only=True)
class EnergyQuery:
    """What will one service draw under each of N candidates? `sla` says how the replicas run under them."""

    profile: ServingProfile
    workload: Workload
    candidates: CandidateArrays
    sla: SlaArrays
    calibration: Calibration | None = None
    """What live readings of this deployment taught; None: nothing was measured."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoints:
    """N steady states of one replica of one profile, while it iterates. Arrays are (N,)."""

    profile: ServingProfile
    batch: FloatArray
    """Decoding sequences."""
    prefill_tokens: FloatArray
    """Per iteration."""
    kv_tokens: FloatArray
    """Resident, read by decode."""
    step_seconds: FloatArray
    clock_ratio: FloatArray
    limit_watts: FloatArray
    """Per GPU: the power cap, else the card's limit."""
    kv_capacity_tokens: FloatArray
    prompt_tokens: FloatArray
    """Computed per request, prefix hits taken off."""
    output_tokens: FloatArray
    multimodal: FloatArray
    """1 where requests carry images or video; vLLM's metrics do not tell it, so live it is 0."""

    def take(self, index: IndexArray) -> "OperatingPoints":
        """The points that an index picks, in its order."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "profile"}
        return replace(self, **{name: array[index] for name, array in arrays.items()})

    def at_clock(self, clock_ratio: FloatArray) -> "OperatingPoints":
        """The same iterations at another clock."""
        work = {
            "prefill_tokens": self.prefill_tokens,
            "decode_sequences": self.batch,
            "kv_tokens": self.kv_tokens,
        }
        asked = step.step_seconds(self.profile.iteration, clock_ratio=clock_ratio, **work)
        had = step.step_seconds(self.profile.iteration, clock_ratio=self.clock_ratio, **work)
        return replace(self, step_seconds=self.step_seconds * asked / had, clock_ratio=clock_ratio)

    @property
    def busy_watts(self) -> FloatArray:
        """Physical estimate per GPU while iterating: joules of a step over its time, within idle and limit."""
        gpu_idle = np.minimum(self.profile.energy.idle_watts, self.limit_watts)
        joules = power.step_joules(
            self.profile,
            prefill_tokens=self.prefill_tokens,
            decode_sequences=self.batch,
            kv_tokens=self.kv_tokens,
            step_seconds=self.step_seconds,
            clock_ratio=self.clock_ratio,
        )
        watts = np.asarray(joules, dtype=np.float64) / self.step_seconds
        bounded: FloatArray = np.clip(np.nan_to_num(watts, nan=np.inf), gpu_idle, self.limit_watts)
        return bounded


def of_queries(queries: Sequence[EnergyQuery]) -> tuple[OperatingPoints, FloatArray]:
    """Operating points of queries about one profile, one after the other, and the busy share (N,) of their replicas.

    Where the queue has no steady state the replica is taken as busy all the time, and where even its batch or step time
    is not known, at its power limit.
    """

    def asked(name: str) -> FloatArray:
        return np.concatenate([np.asarray(getattr(query.candidates, name), dtype=np.float64) for query in queries])

    def found(name: str) -> FloatArray:
        return np.concatenate([np.asarray(getattr(query.sla, name)) for query in queries])

    def repeated(values: Sequence[float]) -> FloatArray:
        return np.repeat(np.asarray(values, dtype=np.float64), [len(query.candidates.replicas) for query in queries])

    profile = queries[0].profile
    slots = np.nan_to_num(asked("max_num_seqs"), nan=1.0, posinf=1.0)
    batch, share, step_seconds, kv = found("batch"), found("busy"), found("step_seconds"), found("kv_tokens")
    steady = np.isfinite(step_seconds) & np.isfinite(batch) & np.isfinite(share) & (step_seconds > 0)
    stable = np.concatenate([query.sla.stable for query in queries])
    busy = np.clip(np.where(steady & stable, share, 1.0), 0.0, 1.0)
    seconds = np.where(steady, step_seconds, np.nan)
    prefill = np.where(busy > 0, found("prefill_tokens_per_second") * seconds / np.maximum(busy, 1e-9), 0.0)
    capacity = asked("kv_capacity_tokens")
    workloads = [query.workload for query in queries]
    points = OperatingPoints(
        profile=profile,
        batch=np.where(steady, np.maximum(batch, 0.0), slots),
        prefill_tokens=prefill,
        kv_tokens=np.where(np.isfinite(kv), np.maximum(kv, 0.0), capacity),
        step_seconds=seconds,
        clock_ratio=np.clip(np.nan_to_num(found("clock_ratio"), nan=1.0), 0.01, 1.0),
        limit_watts=power.effective_cap_watts(profile, asked("power_cap_watts")),
        kv_capacity_tokens=capacity,
        prompt_tokens=repeated([max(item.prompt.mean * (1.0 - item.prefix_hit_ratio), 1.0) for item in workloads]),
        output_tokens=repeated([max(item.output.mean, 1.0) for item in workloads]),
        multimodal=np.zeros(len(slots)),
    )
    if profile.cap_caution != 1.0:
        # A clock that is feared saves nothing: under a limit the watts are those at the lock, or the limit.
        lock = np.clip(
            np.nan_to_num(asked("clock_ratio"), nan=1.0), profile.gpu.min_clock_mhz / profile.gpu.max_clock_mhz, 1.0
        )
        points = points.at_clock(lock)
    return points, busy


def closed_loop(
    profile: ServingProfile,
    *,
    batch: FloatArray,
    prompt_tokens: FloatArray,
    output_tokens: FloatArray,
    multimodal: FloatArray,
    cached_tokens: FloatArray | float = 0.0,
) -> OperatingPoints:
    """Operating points of a replica that always decodes `batch` sequences (each one that ends is replaced).

    Per output token one sequence-step is needed, so that each iteration prefills batch * prompt / output tokens, and a
    sequence holds its prompt and on average half its output. `cached_tokens` of prefix hits come before the
    `prompt_tokens` that are computed: nobody prefills them, but all that follows attends to them. At its power limit
    the card stretches the iteration.
    """
    prefill = batch * prompt_tokens / output_tokens
    kv = batch * (cached_tokens + prompt_tokens + output_tokens / 2)
    seconds = step.step_seconds(
        profile.iteration,
        prefill_tokens=prefill,
        decode_sequences=batch,
        kv_tokens=kv,
        attention_products=prefill * (cached_tokens + prompt_tokens / 2),
    )
    joules = power.step_joules(
        profile, prefill_tokens=prefill, decode_sequences=batch, kv_tokens=kv, step_seconds=seconds
    )
    seconds = power.held_step_seconds(profile, power_cap_watts=np.nan, joules=joules, step_seconds=seconds)
    return OperatingPoints(
        profile=profile,
        batch=batch,
        prefill_tokens=prefill,
        kv_tokens=kv,
        step_seconds=seconds,
        clock_ratio=np.ones_like(batch),
        limit_watts=np.full_like(batch, profile.gpu.tdp_watts),
        kv_capacity_tokens=np.full_like(batch, profile.kv_capacity_tokens),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        multimodal=multimodal,
    )
