"""Time of one engine iteration at any clock.

The MIXED form of `physics.profile`: each term has a share that scales with 1/clock; the rest (memory, launch) does not,
until the clock falls so low that the path to memory slows as well. What the host and the links between GPUs take is
the same at any clock, where a profile tells it apart. The shares are assumptions bracketed by measured
curves of other cards: 35 % of the fixed part, 25 % of KV reads, 60 % of a decode step's own part, all of prefill.
"""

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.profile import IterationCoefficients

MEMORY_KNEE = 0.5
"""Clock ratio below which the part that does not depend on the clock slows as well (about 1000 MHz on Hopper)."""


def stretch(clock_share: float, clock_ratio: npt.ArrayLike) -> FloatArray:
    """Factor on a term's time at `clock_ratio` (of the largest clock, in (0, 1]); 1 at full clock."""
    ratio = np.asarray(clock_ratio, dtype=np.float64)
    return np.asarray(clock_share / ratio + (1.0 - clock_share) * np.maximum(1.0, MEMORY_KNEE / ratio))


def at_clock(iteration: IterationCoefficients, clock_ratio: npt.ArrayLike) -> tuple[FloatArray, ...]:
    """The coefficients (d0, dT of prefill, dN of decode, dKV, dA) in seconds at a clock; shape of `clock_ratio`."""
    ratio = np.asarray(clock_ratio, dtype=np.float64)
    prefill = stretch(iteration.dt_clock_share, np.minimum(1.0, ratio / iteration.prefill_clock_ceiling))
    dn, exchange = iteration.decode_seconds_per_sequence, iteration.exchange_seconds_per_token
    return (
        _beside(iteration.d0_seconds, iteration.host_seconds, stretch(iteration.d0_clock_share, ratio)),
        _beside(iteration.dt_seconds_per_token, exchange, prefill),
        _beside(dn, iteration.host_seconds_per_sequence + exchange, stretch(iteration.decode_clock_share, ratio)),
        iteration.dkv_seconds_per_kv_token * stretch(iteration.dkv_clock_share, ratio),
        iteration.da_seconds_per_token_squared * prefill,
    )


def _beside(seconds: float, steady: float, factor: FloatArray) -> FloatArray:
    """`seconds` times `factor`, but for the `steady` part of them."""
    kept = min(steady, seconds)
    return np.asarray(kept + (seconds - kept) * factor)


def reference_seconds(iteration: IterationCoefficients) -> float:
    """Seconds of one typical iteration at full clock: 64 decodes with contexts of 1,000 tokens beside 512 of prompts.

    One number that tells whether two fits of a replica are about as fast.
    """
    return (
        iteration.d0_seconds
        + iteration.dt_seconds_per_token * 512.0
        + iteration.decode_seconds_per_sequence * 64.0
        + iteration.dkv_seconds_per_kv_token * 64_000.0
        + iteration.da_seconds_per_token_squared * 512.0 * 256.0
    )


def step_seconds(
    iteration: IterationCoefficients,
    *,
    prefill_tokens: npt.ArrayLike,
    decode_sequences: npt.ArrayLike,
    kv_tokens: npt.ArrayLike,
    attention_products: npt.ArrayLike = 0.0,
    clock_ratio: npt.ArrayLike = 1.0,
) -> FloatArray:
    """Seconds of one iteration; arguments broadcast.

    `kv_tokens` are the resident tokens that decoding sequences read; `attention_products` is the sum over prefill
    chunks of chunk * (history + chunk / 2).
    """
    d0, dt, dn, dkv, da = at_clock(iteration, clock_ratio)
    return np.asarray(
        d0
        + dt * np.asarray(prefill_tokens, dtype=np.float64)
        + dn * np.asarray(decode_sequences, dtype=np.float64)
        + dkv * np.asarray(kv_tokens, dtype=np.float64)
        + da * np.asarray(attention_products, dtype=np.float64)
    )
