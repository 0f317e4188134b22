"""What fits of similar pairs say about the estimate of a pair nobody measured.

The roofline is off in the same direction for similar pairs: the same kernels, the same host. So the logarithm of fitted
over estimated step time of fitted pairs, weighted by how near they are, corrects an estimate; far from all of them
nothing changes. Distance counts the size, the parallelism, the precision, the kind of layers and the card.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics import catalogue, kv, roofline, step
from wattkeeper.physics.architecture import ModelSpec, Precision
from wattkeeper.physics.profile import GpuSpec, IterationCoefficients

REFERENCE_BATCHES = np.array([8.0, 128.0])
REFERENCE_CONTEXT_TOKENS = 1000.0
REACH = 0.75
"""Distance at which a neighbour's weight has fallen to exp(-1/2)."""
DOUBT = 0.5
"""Weight of "no correction" beside the neighbours'."""
LARGEST_CORRECTION = 0.6
"""Of the logarithm."""
_UNITS = {"size": 1.0, "activated": 1.0, "shards": 1.5, "experts": 0.5, "states": 1 / 3, "precision": 0.5, "card": 0.83}
"""What counts as distance 1: e-fold of size, of activated size and of bandwidth (0.83: H100 to B200)."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A fitted pair beside its estimate."""

    model: ModelSpec
    gpu: GpuSpec
    shards: int
    log_ratios: tuple[float, float]
    """ln(fitted / estimated step time) at `REFERENCE_BATCHES`."""


def neighbour(
    *, model: ModelSpec, gpu: GpuSpec, shards: int, fitted: IterationCoefficients, constants: roofline.Constants
) -> Neighbour:
    """What a fit says about the estimate of its own pair."""
    demand = kv.demand(model, tensor_parallel=shards)
    estimate = roofline.iteration(model, gpu, shards=shards, demand=demand, constants=constants)
    ratios = np.log(_reference_seconds(fitted) / _reference_seconds(estimate))
    small, large = np.clip(ratios, -LARGEST_CORRECTION, LARGEST_CORRECTION)
    return Neighbour(model=model, gpu=gpu, shards=shards, log_ratios=(float(small), float(large)))


@functools.cache
def of_catalogue() -> tuple[Neighbour, ...]:
    """The fits of the catalogue that rest on whole steps of an engine, each architecture once."""
    found = []
    for pair in catalogue.fitted_pairs():
        if not pair.end_to_end:
            continue
        fitted = IterationCoefficients(
            d0_seconds=pair.d0_ms * 1e-3,
            dt_seconds_per_token=pair.dt_ms * 1e-3,
            dn_seconds_per_decode=pair.dn_ms * 1e-3,
            dkv_seconds_per_kv_token=pair.dkv_ms * 1e-3,
            da_seconds_per_token_squared=pair.da_ms * 1e-3,
        )
        found.append(
            neighbour(
                model=catalogue.model(pair.models[0]),
                gpu=catalogue.gpu(pair.accelerator),
                shards=pair.tensor_parallel,
                fitted=fitted,
                constants=roofline.CONSTANTS,
            )
        )
    return tuple(found)


def corrected(
    estimate: IterationCoefficients, *, model: ModelSpec, gpu: GpuSpec, shards: int, neighbours: Iterable[Neighbour]
) -> tuple[IterationCoefficients, float]:
    """(the estimate with d0 and dN as near neighbours have them, weight of those on the same card from 0 to 1)."""
    known = list(neighbours)
    if not known:
        return estimate, 0.0
    own = _place(model, gpu, shards)
    distance = np.array([np.square(own - _place(each.model, each.gpu, each.shards)).sum() for each in known])
    weight = np.exp(-distance / (2.0 * REACH**2))
    ratios = np.array([each.log_ratios for each in known])
    total = float(weight.sum())
    seconds = _reference_seconds(estimate) * np.exp(weight @ ratios / (total + DOUBT))
    reads = estimate.dkv_seconds_per_kv_token * REFERENCE_CONTEXT_TOKENS * REFERENCE_BATCHES
    d0, dn = roofline.linear(REFERENCE_BATCHES, np.maximum(seconds - reads, 0.05 * seconds))
    on_card = float(weight[[each.gpu is gpu for each in known]].sum())
    return replace(estimate, d0_seconds=d0, dn_seconds_per_decode=dn), on_card / (on_card + DOUBT)


def _reference_seconds(iteration: IterationCoefficients) -> FloatArray:
    return step.step_seconds(
        iteration,
        prefill_tokens=0.0,
        decode_sequences=REFERENCE_BATCHES,
        kv_tokens=REFERENCE_BATCHES * REFERENCE_CONTEXT_TOKENS,
    )


def _place(model: ModelSpec, gpu: GpuSpec, shards: int) -> FloatArray:
    eight, four = (Precision.FP8, Precision.INT8), (Precision.INT4, Precision.NVFP4, Precision.MXFP4)
    bits = 1.0 if model.precision in eight else (-1.5 if model.precision in four else 0.0)
    place = {
        "size": math.log(model.weight_bytes),
        "activated": math.log(model.activated_parameters),
        "shards": math.log2(shards),
        "experts": float(model.experts > 0),
        "states": float(model.state_layers > 0),
        "precision": bits,
        "card": math.log(gpu.bandwidth_bytes_per_second),
    }
    return np.array([place[name] / unit for name, unit in _UNITS.items()])
