"""Coefficients of a pair nobody measured, from data-sheet figures and a few constants fitted across many pairs.

A decode step reads the weights (of a mixture of experts: those experts that its tokens touch), pays a launch overhead
per layer and per sequence, and reads KV; a prefill token costs two operations per active parameter; attention costs
four per head dimension, layer and pair of positions. The constants below were fitted to the mean step times of 290 runs
(13 model families on 1-8 H100 or B200, batch 8 to 256) of the ML.ENERGY leaderboard v3 (vLLM 0.11.1), rows that
are bound by the host left out. Energies per byte and operation are those that the two pairs with fitted power share,
scaled to the card's power limit.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.catalogue import ModelSpec
from wattkeeper.physics.profile import EnergyCoefficients, GpuSpec, IterationCoefficients


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What data sheets do not tell; shares are of the data-sheet figure."""

    weight_bandwidth_share: float = 0.85
    expert_bandwidth_share: float = 0.75
    kv_bandwidth_share: float = 0.85
    compute_share: float = 0.57
    attention_compute_share: float = 0.45
    layer_overhead_seconds: float = 63e-6
    collective_overhead_seconds: float = 23e-6
    """Added per layer where several GPUs exchange activations."""
    expert_layer_overhead_seconds: float = 120e-6
    """Added per layer where tokens are routed to experts."""
    sequence_overhead_seconds: float = 32e-6


CONSTANTS = Constants()
RELATIVE_ERROR = 0.25
"""One-sigma error of step time: with each model family left out of the fit in turn, the step times of the other rows
came out 11 % off in the median, 16 % in the mean, 36 % at the 90th percentile (root mean square of the log: 0.22)."""

STATIC_POWER_SHARE = 0.186
"""Floor of an iterating GPU over its power limit (130 of 700 W on H100)."""
CONTEXT_WATTS = 45.0
CONTEXT_SHARE = 0.08
"""A CUDA context with a loaded model adds the smaller of both to the bare idle power (+26..66 W published)."""
WEIGHT_READ_POWER_SHARE = 0.46
"""Dynamic power while only weights or KV stream, over the power limit (135 pJ per byte on H100)."""
OVERHEAD_POWER_SHARE = 0.46
"""The same between the large kernels of a step (launches, routing, collectives, work per sequence). With it the watts
of 838 ML.ENERGY v3 runs on H100 and B200 come out 19 % off in the mean and not biased; without it 35 % too low."""
COMPUTE_POWER_SHARE = 0.98
"""Power of a large prefill over the power limit."""
_BATCHES = np.array([1.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])


def iteration(
    model: ModelSpec, gpu: GpuSpec, *, shards: int, kv_bytes_per_token: float, constants: Constants = CONSTANTS
) -> IterationCoefficients:
    """Iteration coefficients of `model` on `shards` GPUs that work on one step together."""
    compute = shards * gpu.bf16_flops
    expert_seconds = _expert_read_seconds(model, gpu, shards, constants)
    dense_bytes = model.weight_bytes - _expert_bytes(model) - _embedding_bytes(model)
    dense_seconds = max(dense_bytes, 0.0) / (shards * gpu.bandwidth_bytes_per_second * constants.weight_bandwidth_share)
    fixed = dense_seconds + _overhead_seconds(model, shards, constants)
    per_token = 2.0 * model.activated_parameters / (compute * constants.compute_share)
    d0, dn = _linear(fixed + expert_seconds + (per_token + constants.sequence_overhead_seconds) * _BATCHES)
    return IterationCoefficients(
        d0_seconds=d0,
        dt_seconds_per_token=per_token,
        dkv_seconds_per_kv_token=kv_bytes_per_token / (gpu.bandwidth_bytes_per_second * constants.kv_bandwidth_share),
        da_seconds_per_token_squared=4.0
        * model.layers
        * model.heads
        * model.head_dim
        / (compute * constants.attention_compute_share),
        dn_seconds_per_decode=dn,
    )


def energy(
    model: ModelSpec, gpu: GpuSpec, *, shards: int, kv_bytes_per_token: float, constants: Constants = CONSTANTS
) -> EnergyCoefficients:
    """Energy coefficients per GPU that draw the power limit in a large prefill and two thirds of it in light decode."""
    idle = gpu.idle_watts + min(CONTEXT_WATTS, CONTEXT_SHARE * gpu.tdp_watts)
    static = max(STATIC_POWER_SHARE * gpu.tdp_watts, idle)
    joules_per_second_read = WEIGHT_READ_POWER_SHARE * gpu.tdp_watts
    bandwidth = gpu.bandwidth_bytes_per_second
    dense_bytes = max(model.weight_bytes - _expert_bytes(model) - _embedding_bytes(model), 0.0)
    dense_seconds = dense_bytes / (shards * bandwidth * constants.weight_bandwidth_share)
    per_token_seconds = 2.0 * model.activated_parameters / (shards * gpu.bf16_flops * constants.compute_share)
    per_token_joules = per_token_seconds * (COMPUTE_POWER_SHARE * gpu.tdp_watts - static)
    expert_joules = joules_per_second_read * _expert_read_seconds(model, gpu, shards, constants)
    overhead_seconds = _overhead_seconds(model, shards, constants) + constants.sequence_overhead_seconds * _BATCHES
    overhead_joules = OVERHEAD_POWER_SHARE * gpu.tdp_watts * overhead_seconds
    read_joules = joules_per_second_read * dense_seconds + expert_joules
    e0, en = _linear(read_joules + overhead_joules + per_token_joules * _BATCHES)
    return EnergyCoefficients(
        static_watts=static,
        idle_watts=idle,
        e0_joules=e0,
        et_joules_per_prefill_token=per_token_joules,
        en_joules_per_decode=en,
        ekv_joules_per_kv_token=joules_per_second_read
        * kv_bytes_per_token
        / (bandwidth * constants.kv_bandwidth_share),
    )


def _overhead_seconds(model: ModelSpec, shards: int, constants: Constants) -> float:
    """Seconds of a step between its large kernels, work per sequence apart."""
    per_layer = constants.layer_overhead_seconds
    per_layer += constants.collective_overhead_seconds if shards > 1 else 0.0
    per_layer += constants.expert_layer_overhead_seconds if model.experts else 0.0
    return model.layers * per_layer


def _expert_bytes(model: ModelSpec) -> float:
    return model.expert_parameters * model.weight_bytes_per_parameter


def _embedding_bytes(model: ModelSpec) -> float:
    """The input embedding: a look-up reads a few rows of it, not the whole."""
    return min(model.vocab * model.hidden * model.weight_bytes_per_parameter, 0.5 * model.weight_bytes)


def _expert_read_seconds(model: ModelSpec, gpu: GpuSpec, shards: int, constants: Constants) -> FloatArray:
    """Seconds to read the experts that a batch touches, for each of `_BATCHES` (tokens choose independently)."""
    if model.experts == 0:
        return np.zeros_like(_BATCHES)
    touched = 1.0 - (1.0 - model.experts_per_token / model.experts) ** _BATCHES
    bandwidth = shards * gpu.bandwidth_bytes_per_second * constants.expert_bandwidth_share
    return np.asarray(_expert_bytes(model) * touched / bandwidth)


def _linear(values: FloatArray) -> tuple[float, float]:
    """Non-negative intercept and slope over `_BATCHES` with the least relative squared error."""
    design = np.stack([np.ones_like(_BATCHES), _BATCHES], axis=1) / values[:, None]
    (intercept, slope), _ = optimize.nnls(design, np.ones_like(values))
    return float(intercept), float(slope)
