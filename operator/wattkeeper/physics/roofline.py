"""Coefficients of a pair nobody measured, from data-sheet figures and a few constants fitted across many pairs.

A decode step reads the weights (of a mixture of experts: those experts that its tokens touch), pays overheads of the
host and of launches per step, layer and sequence, exchanges activations where several GPUs work on it, and reads KV and
states; a prefill token costs two operations per active parameter; attention costs four per head dimension, layer and
pair of positions. `work` says how much of each a step has at the data sheet's figures; a step's time is that times
`Constants`, which `wattkeeper fit constants` fits to the ITL curves of the ML.ENERGY leaderboard v3.

The exchange of activations is two all-reduces per layer of 2 (n-1)/n times the activations over the link, at the share
that measured all-reduces of vLLM reach (aiconfigurator tables of A100, H100, H200, B200, L40S: 51-87 % of NVLink,
60 % of PCIe between two cards, 7-12 % between more). Energies per byte and operation are those that the two pairs with
fitted power share, scaled to the card's power limit.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy import optimize

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.architecture import Cache, ModelSpec, Precision
from wattkeeper.physics.kv import KvDemand
from wattkeeper.physics.profile import EnergyCoefficients, GpuSpec, IterationCoefficients


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Seconds per unit of `work`: reads and compute in seconds at the data sheet's figure, the others in counts."""

    dense_read: float = 1.0
    expert_read: float = 1.05
    kv_read: float = 1.0
    compute: float = 1.2
    step_seconds: float = 0.284e-3
    """Of the host, per step."""
    layer_seconds: float = 58e-6
    collective_layer_seconds: float = 23.8e-6
    """Per layer where several GPUs exchange activations, beside the bytes of the exchange."""
    expert_layer_seconds: float = 21.2e-6
    """Per layer where tokens are routed to experts."""
    quantised_expert_layer_seconds: float = 152e-6
    """In addition where the experts are in 8 bits: a property of the kernels of vLLM 0.11."""
    sequence_seconds: float = 44.5e-6
    """Of the host, per sequence."""

    def vector(self) -> FloatArray:
        """In the order of `work`."""
        return np.array([getattr(self, each.name) for each in fields(self)])


WORK_TERMS = tuple(each.name for each in fields(Constants))
CONSTANTS = Constants()
RELATIVE_ERROR = 0.30
"""One-sigma error of step time (root mean square of the log) of families left out of the fit, see docs/catalogue.md."""
ATTENTION_COMPUTE_SHARE = 0.45
LINK_SHARE = 0.6
CROWDED_LINK_SHARE = 0.1
"""Of PCIe between more than two cards: transfers cross the host."""
_SLOWEST_FABRIC = 100e9
"""Links below this many bytes per second are PCIe slots."""

STATIC_POWER_SHARE = 0.186
"""Floor of an iterating GPU over its power limit (130 of 700 W on H100)."""
CONTEXT_WATTS = 45.0
CONTEXT_SHARE = 0.08
"""A CUDA context with a loaded model adds the smaller of both to the bare idle power (+26..66 W published)."""
WEIGHT_READ_POWER_SHARE = 0.46
"""Dynamic power while only weights or KV stream, over the power limit (135 pJ per byte on H100)."""
OVERHEAD_POWER_SHARE = 0.46
"""The same between the large kernels of a step (launches, routing, collectives, work per sequence)."""
COMPUTE_POWER_SHARE = 0.98
"""Power of a large prefill over the power limit."""
_BATCHES = np.array([1.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
_CONTEXTS = np.array([256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0])
_READS = ("dense_read", "expert_read", "kv_read")


def work(
    model: ModelSpec, gpu: GpuSpec, *, shards: int, demand: KvDemand, sequences: npt.ArrayLike,
    context_tokens: npt.ArrayLike, prefill_tokens: npt.ArrayLike = 0.0,
) -> FloatArray:  # fmt: skip
    """What a step on `shards` GPUs does, in the units of `Constants`: shape (N, len(WORK_TERMS)).

    `demand` is per GPU. The exchange of activations and the attention of prefill are not in it: `exchange_seconds`.
    """
    decodes, context, prefill = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(each, dtype=np.float64)) for each in (sequences, context_tokens, prefill_tokens))
    )
    tokens = decodes + prefill
    bandwidth = shards * gpu.bandwidth_bytes_per_second
    dense_bytes = max(model.weight_bytes - model.expert_bytes - model.embedding_bytes, 0.0)
    one = np.ones_like(tokens)
    eight_bit = model.experts > 0 and model.precision in (Precision.FP8, Precision.INT8)
    columns = {
        "dense_read": one * dense_bytes / bandwidth,
        "expert_read": model.expert_bytes * touched_share(model, tokens) / bandwidth,
        "kv_read": decodes * demand.step_bytes(context) / gpu.bandwidth_bytes_per_second,
        "compute": tokens * compute_seconds(model, gpu, shards=shards),
        "step_seconds": one,
        "layer_seconds": one * model.layers,
        "collective_layer_seconds": one * (model.layers if shards > 1 else 0),
        "expert_layer_seconds": one * model.expert_layers,
        "quantised_expert_layer_seconds": one * (model.expert_layers if eight_bit else 0),
        "sequence_seconds": decodes,
    }
    return np.stack([columns[name] for name in WORK_TERMS], axis=1)


def compute_seconds(model: ModelSpec, gpu: GpuSpec, *, shards: int) -> float:
    """Seconds of one token's multiplications at the data sheet's rate for the model's precision."""
    rates = {
        Precision.FP8: gpu.fp8_flops,
        Precision.INT8: gpu.fp8_flops,
        Precision.NVFP4: gpu.fp4_flops,
    }
    quantised = rates.get(model.precision) or gpu.bf16_flops
    return 2.0 * model.activated_parameters / (shards * quantised)


def exchange_seconds(model: ModelSpec, gpu: GpuSpec, *, shards: int) -> float:
    """Seconds per token for the exchange of activations between `shards` GPUs; 0 for one."""
    if shards < 2:
        return 0.0
    crowded = gpu.link_bytes_per_second < _SLOWEST_FABRIC and shards > 2
    link = gpu.link_bytes_per_second * (CROWDED_LINK_SHARE if crowded else LINK_SHARE)
    moved = 2.0 * (shards - 1) / shards * 2.0 * model.hidden
    return exchanges(model) * moved / link


def exchanges(model: ModelSpec) -> int:
    """All-reduces of one step: one after each attention or state layer, one after each feed-forward block."""
    return sum(group.layers for group in model.groups) + model.feed_forward_layers


def attention_seconds(model: ModelSpec, gpu: GpuSpec, *, shards: int) -> float:
    """Seconds per pair of positions in prefill (chunk * (history + chunk / 2)), in layers that see all of them."""
    full = sum(group.layers for group in model.groups if group.grows or group.cache is Cache.SHARED)
    # Windows end most pairs early; long prompts see them as work per token, which `compute` is fitted to hold.
    return 4.0 * full * model.heads * model.head_dim / (shards * gpu.bf16_flops * ATTENTION_COMPUTE_SHARE)


def iteration(
    model: ModelSpec, gpu: GpuSpec, *, shards: int, demand: KvDemand, constants: Constants = CONSTANTS
) -> IterationCoefficients:
    """Iteration coefficients of `model` on `shards` GPUs that work on one step together.

    `demand` is per GPU that reads KV at a time: of all pipeline stages, one after the other.
    """
    scale = constants.vector()
    exchange = exchange_seconds(model, gpu, shards=shards)
    seconds = work(model, gpu, shards=shards, demand=demand, sequences=_BATCHES, context_tokens=0.0) @ scale
    d0, dn = linear(_BATCHES, seconds)
    per_sequence, dkv = _kv_seconds(gpu, demand, constants.kv_read)
    return IterationCoefficients(
        d0_seconds=d0,
        dt_seconds_per_token=compute_seconds(model, gpu, shards=shards) * constants.compute + exchange,
        dkv_seconds_per_kv_token=dkv,
        da_seconds_per_token_squared=attention_seconds(model, gpu, shards=shards),
        dn_seconds_per_decode=dn + per_sequence + exchange,
        host_seconds=constants.step_seconds,
        host_seconds_per_sequence=constants.sequence_seconds,
        exchange_seconds_per_token=exchange,
    )


def energy(
    model: ModelSpec, gpu: GpuSpec, *, shards: int, demand: KvDemand, constants: Constants = CONSTANTS
) -> EnergyCoefficients:
    """Energy coefficients per GPU that draw the power limit in a large prefill and two thirds of it in light decode."""
    idle = gpu.idle_watts + min(CONTEXT_WATTS, CONTEXT_SHARE * gpu.tdp_watts)
    static = max(STATIC_POWER_SHARE * gpu.tdp_watts, idle)
    seconds = work(model, gpu, shards=shards, demand=demand, sequences=_BATCHES, context_tokens=0.0)
    seconds = seconds * constants.vector()
    column = {name: seconds[:, index] for index, name in enumerate(WORK_TERMS)}
    compute_watts = COMPUTE_POWER_SHARE * gpu.tdp_watts - static
    none = np.zeros_like(_BATCHES)
    reads = sum((column[name] for name in _READS), none)
    overheads = sum((column[name] for name in WORK_TERMS if name not in (*_READS, "compute")), none)
    overheads = overheads + exchange_seconds(model, gpu, shards=shards) * _BATCHES
    joules = gpu.tdp_watts * (WEIGHT_READ_POWER_SHARE * reads + OVERHEAD_POWER_SHARE * overheads)
    e0, en = linear(_BATCHES, np.asarray(joules + compute_watts * column["compute"]))
    per_sequence, per_kv_token = _kv_seconds(gpu, demand, constants.kv_read)
    read_watts = WEIGHT_READ_POWER_SHARE * gpu.tdp_watts
    return EnergyCoefficients(
        static_watts=static,
        idle_watts=idle,
        e0_joules=e0,
        et_joules_per_prefill_token=compute_watts * compute_seconds(model, gpu, shards=shards) * constants.compute,
        en_joules_per_decode=en + read_watts * per_sequence,
        ekv_joules_per_kv_token=read_watts * per_kv_token,
    )


def _kv_seconds(gpu: GpuSpec, demand: KvDemand, kv_read: float) -> tuple[float, float]:
    """Seconds per sequence and per KV token that come nearest to the demand over common contexts."""
    if demand.plain:
        return 0.0, demand.growing_bytes * kv_read / gpu.bandwidth_bytes_per_second
    return linear(_CONTEXTS, demand.step_bytes(_CONTEXTS) * kv_read / gpu.bandwidth_bytes_per_second)


def touched_share(model: ModelSpec, tokens: FloatArray) -> FloatArray:
    """Share of the experts that some token chooses (tokens choose independently)."""
    if model.experts == 0:
        return np.zeros_like(tokens)
    return np.asarray(1.0 - (1.0 - model.experts_per_token / model.experts) ** tokens)


def linear(x: FloatArray, values: FloatArray) -> tuple[float, float]:
    """Non-negative intercept and slope over `x` with the least relative squared error of positive `values`."""
    scale = x.max()
    design = np.stack([np.ones_like(x), x / scale], axis=1) / values[:, None]
    (intercept, slope), _ = optimize.nnls(design, np.ones_like(values))
    return float(intercept), float(slope / scale)
