"""The factor system of energy: what moves the watts of a replica, in four dimensions, and known before acting.

Dimensions: KV-cache configuration, scheduling, system environment, workload traits. The learned correction depends on
the factors that public measured data move. The others (cap, clock, token budget, replicas, rate, prefix hits) act
through the physical estimate alone: it is the only part that can carry them honestly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import factor_kinds
from wattkeeper.energy.factor_kinds import Dimension as Dimension
from wattkeeper.energy.factor_kinds import FactorBefore, Known, Origin
from wattkeeper.energy.points import OperatingPoints
from wattkeeper.physics.profile import ServingProfile


@dataclass(frozen=True, kw_only=True)
class Factor(FactorBefore):
    """One factor; `value` maps operating points and their estimated watts to (N,) in `unit`."""

    known: Known
    description: str
    scale: Literal["log2", "linear"]
    """How it enters the models: logarithms for what spans orders of magnitude."""
    fade: float
    """Outside the trained range the correction fades to nothing over this distance, in units of `scale`."""
    physical: bool = False
    """True where it rests on the physical estimate; baselines that know no physics go without it."""
    value: Callable[[OperatingPoints, FloatArray], FloatArray | float]


@dataclass(frozen=True, kw_only=True)
class UnlearnedFactor(FactorBefore):
    """A factor that acts through the physical estimate alone, and why."""

    reason: str


_TOWARDS_ONE = 6.0
"""Slow fade for what falls with the load: below the smallest measured batch (8) weight reads make up the watts as they
do at it, so that what was learned there holds to a good part."""
_KV, _SCHEDULING, _SYSTEM, _WORKLOAD = Dimension

FACTORS: tuple[Factor, ...] = (
    Factor(
        name="kv_bytes_per_token", dimension=_KV, origin=Origin.CATALOGUE,
        unit="bytes", known=Known.CONFIGURED, scale="log2", fade=2.0,
        description="KV-cache bytes of one token over all GPUs of the replica: layers, KV heads and cache dtype",
        value=lambda p, _: p.profile.kv_bytes_per_token * p.profile.gpus_per_replica,
    ),
    Factor(
        name="kv_fill", dimension=_KV, origin=Origin.PREDICTED,
        unit="1", known=Known.PREDICTED, scale="linear", fade=1.0,
        description="resident tokens over KV-cache capacity",
        value=lambda p, _: p.kv_tokens / np.maximum(p.kv_capacity_tokens, 1.0),
    ),
    Factor(
        name="kv_step_share", dimension=_KV, origin=Origin.PREDICTED,
        unit="1", known=Known.PREDICTED, scale="linear", fade=0.5, physical=True,
        description="share of iteration time spent reading the KV cache",
        value=lambda p, _: p.profile.iteration.dkv_seconds_per_kv_token * p.kv_tokens / p.step_seconds,
    ),
    Factor(
        name="batch", dimension=_SCHEDULING, origin=Origin.PREDICTED,
        unit="sequences", known=Known.PREDICTED, scale="log2", fade=_TOWARDS_ONE,
        description="sequences decoding together",
        value=lambda p, _: p.batch,
    ),
    Factor(
        name="prefill_tokens_per_step", dimension=_SCHEDULING, origin=Origin.PREDICTED,
        unit="tokens", known=Known.PREDICTED, scale="log2",
        fade=_TOWARDS_ONE, description="prompt tokens computed per iteration, on average",
        value=lambda p, _: p.prefill_tokens,
    ),
    Factor(
        name="step_seconds", dimension=_SCHEDULING, origin=Origin.PREDICTED,
        unit="s", known=Known.PREDICTED, scale="log2", fade=1.5,
        physical=True, description="estimated time of one iteration",
        value=lambda p, _: p.step_seconds,
    ),
    Factor(
        name="gpus_per_replica", dimension=_SYSTEM, origin=Origin.SPEC,
        unit="GPUs", known=Known.CONFIGURED, scale="log2", fade=1.0,
        description="GPUs that one replica spans",
        value=lambda p, _: float(p.profile.gpus_per_replica),
    ),
    Factor(
        name="gpu_power_limit", dimension=_SYSTEM, origin=Origin.CATALOGUE,
        unit="W", known=Known.CONFIGURED, scale="log2", fade=0.5,
        description="rated power of one GPU",
        value=lambda p, _: p.profile.gpu.tdp_watts,
    ),
    Factor(
        name="gpu_bandwidth", dimension=_SYSTEM, origin=Origin.CATALOGUE,
        unit="bytes/s", known=Known.CONFIGURED, scale="log2", fade=1.0,
        description="peak memory bandwidth of one GPU",
        value=lambda p, _: p.profile.gpu.bandwidth_bytes_per_second,
    ),
    Factor(
        name="parameters_per_gpu", dimension=_SYSTEM, origin=Origin.CATALOGUE,
        unit="1", known=Known.CONFIGURED, scale="log2", fade=2.0,
        description="parameters of the model over the GPUs of the replica",
        value=lambda p, _: p.profile.parameters / p.profile.gpus_per_replica,
    ),
    Factor(
        name="weight_bytes_per_parameter", dimension=_SYSTEM, origin=Origin.CATALOGUE,
        unit="bytes", known=Known.CONFIGURED, scale="linear",
        fade=1.0, description="2 = bf16, 1 = fp8, about 0.6 = four bits with scales",
        value=lambda p, _: _weight_bytes(p.profile) / p.profile.parameters,
    ),
    Factor(
        name="activated_parameters", dimension=_SYSTEM, origin=Origin.CATALOGUE,
        unit="1", known=Known.CONFIGURED, scale="log2", fade=2.0,
        description="parameters used per token: fewer than all in a mixture of experts",
        value=lambda p, _: p.profile.activated_parameters,
    ),
    Factor(
        name="activated_share", dimension=_SYSTEM, origin=Origin.CATALOGUE,
        unit="1", known=Known.CONFIGURED, scale="linear", fade=1.0,
        description="activated over all parameters; 1 = dense",
        value=lambda p, _: p.profile.activated_parameters / p.profile.parameters,
    ),
    Factor(
        name="estimated_power_share", dimension=_SYSTEM, origin=Origin.PREDICTED,
        unit="1", known=Known.PREDICTED, scale="linear", fade=0.3,
        physical=True, description="physical estimate of the watts over the rated power",
        value=lambda p, watts: watts / p.profile.gpu.tdp_watts,
    ),
    Factor(
        name="fixed_step_seconds", dimension=_SYSTEM, origin=Origin.CATALOGUE,
        unit="s", known=Known.CONFIGURED, scale="log2", fade=2.0,
        physical=True, description="estimated time of an iteration without work: weight reads and overheads",
        value=lambda p, _: p.profile.iteration.d0_seconds,
    ),
    Factor(
        name="prompt_tokens", dimension=_WORKLOAD, origin=Origin.LIVE_METRIC,
        unit="tokens", known=Known.OBSERVED, scale="log2", fade=3.0,
        description="mean prompt tokens per request that no prefix hit saves",
        value=lambda p, _: p.prompt_tokens,
    ),
    Factor(
        name="output_tokens", dimension=_WORKLOAD, origin=Origin.LIVE_METRIC,
        unit="tokens", known=Known.OBSERVED, scale="log2", fade=3.0,
        description="mean output tokens per request",
        value=lambda p, _: p.output_tokens,
    ),
    Factor(
        name="multimodal", dimension=_WORKLOAD, origin=Origin.CATALOGUE,
        unit="1", known=Known.CONFIGURED, scale="linear", fade=1.0,
        description="1 where requests carry images or video",
        value=lambda p, _: p.multimodal,
    ),
)  # fmt: skip

factor_kinds.before_acting(*FACTORS)

UNLEARNED_FACTORS: tuple[UnlearnedFactor, ...] = (
    UnlearnedFactor(
        name="power_cap", dimension=_SYSTEM, origin=Origin.SPEC, unit="W",
        reason="no public data moves it on datacentre GPUs under a serving load",
    ),
    UnlearnedFactor(
        name="clock_ratio", dimension=_SYSTEM, origin=Origin.SPEC, unit="1",
        reason="no public data moves it on datacentre GPUs under a serving load",
    ),
    UnlearnedFactor(
        name="max_num_batched_tokens", dimension=_SCHEDULING, origin=Origin.SPEC, unit="tokens",
        reason="constant in public data; acts on batch, step time and capacity",
    ),
    UnlearnedFactor(
        name="max_num_seqs", dimension=_SCHEDULING, origin=Origin.SPEC, unit="sequences",
        reason="equals the batch in closed-loop data; acts on batch and capacity",
    ),
    UnlearnedFactor(
        name="replicas", dimension=_SYSTEM, origin=Origin.SPEC, unit="1",
        reason="multiplies the watts of a replica and shares the load",
    ),
    UnlearnedFactor(
        name="requests_per_second", dimension=_WORKLOAD, origin=Origin.LIVE_METRIC, unit="1/s",
        reason="acts on batch and busy share",
    ),
    UnlearnedFactor(
        name="prefix_hit_ratio", dimension=_WORKLOAD, origin=Origin.LIVE_METRIC, unit="1",
        reason="no public energy data has it; acts on the prompt tokens that are computed",
    ),
)  # fmt: skip


def _weight_bytes(profile: ServingProfile) -> float:
    return 2.0 * profile.parameters if profile.weight_bytes is None else profile.weight_bytes


NAMES = tuple(factor.name for factor in FACTORS)
FADES: FloatArray = np.array([factor.fade for factor in FACTORS])
_LOGARITHMIC = np.array([factor.scale == "log2" for factor in FACTORS])
_LEAST = 2.0**-40
"""Below any factor on a log scale: zero becomes a very small number instead of -inf."""


def matrix(points: OperatingPoints, busy_watts: FloatArray, *, out: FloatArray | None = None) -> FloatArray:
    """Scaled factors (N, len(FACTORS)) of operating points; written into `out` where given.

    Rounded to six decimals: differences in the last bits between machines must not move a tree's split.
    """
    if out is None:
        out = np.empty((len(points.batch), len(FACTORS)))
    for column, factor in enumerate(FACTORS):
        out[:, column] = factor.value(points, busy_watts)
    out[:, _LOGARITHMIC] = np.log2(np.maximum(out[:, _LOGARITHMIC], _LEAST))
    np.round(out, 6, out=out)
    return out


def unscaled(scaled: FloatArray) -> FloatArray:
    """Factors in their units again, as a model without logarithms sees them."""
    values = scaled.copy()
    values[:, _LOGARITHMIC] = np.exp2(values[:, _LOGARITHMIC])
    return values
