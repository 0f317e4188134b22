"""Iteration models, mixes and strategies shared by the tests of the fluid model."""

import numpy as np
from hypothesis import strategies as st

from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing import fluid
from wattkeeper.queueing.fluid import Limits, Times, kv_only_form
from wattkeeper.queueing.mix import Load, Mix

PAPER = kv_only_form(d0_seconds=13.8e-3, d1_seconds_per_kv_token=0.575e-6)
"""A100-80GB with Llama-2-7B in the form of arXiv 2504.11320."""
A100_MIXED = IterationCoefficients(
    d0_seconds=8.79e-3,
    dt_seconds_per_token=55.74e-6,
    dkv_seconds_per_kv_token=0.294e-6,
    da_seconds_per_token_squared=8.4e-9,
)
A100_KV_TOKENS = 137_000.0
TOY = kv_only_form(d0_seconds=0.76, d1_seconds_per_kv_token=0.02)

P512D20 = Mix.of(rates_per_second=20.0, prompt_tokens=512, decode_steps=20)
TWO_TYPES = Mix.of(rates_per_second=[14.0, 6.0], prompt_tokens=512, decode_steps=[20, 50])
TOY_MIX = Mix.of(rates_per_second=4.0, prompt_tokens=1, decode_steps=1)

ITERATIONS = st.builds(
    lambda d0, dt, dn, dkv, da: IterationCoefficients(
        d0_seconds=d0,
        dt_seconds_per_token=dt,
        dn_seconds_per_decode=dn,
        dkv_seconds_per_kv_token=dkv,
        da_seconds_per_token_squared=da,
    ),
    st.floats(1e-3, 0.1),
    st.floats(1e-6, 2e-4),
    st.floats(0.0, 2e-4),
    st.floats(1e-9, 2e-6),
    st.floats(0.0, 1e-8),
)
CLASSES = st.lists(
    st.tuples(
        st.just(0.0) | st.floats(1e-3, 5.0),
        st.integers(1, 4000),
        st.integers(0, 800),
        st.floats(0.0, 1.0),
    ),
    min_size=1,
    max_size=6,
)
LIMITS = st.tuples(st.floats(8e3, 1e6), st.integers(1, 512), st.integers(0, 8192))


def mix_of(classes, factor=1.0):
    rates, prompts, steps, hits = (np.array(each, dtype=float) for each in zip(*classes, strict=True))
    return Mix.of(
        rates_per_second=rates * factor, prompt_tokens=prompts, decode_steps=steps, cached_tokens=hits * (prompts - 1)
    )


def limits_of(drawn):
    capacity, slots, more = drawn
    return Limits.of(kv_capacity_tokens=capacity, max_num_seqs=slots, max_num_batched_tokens=slots + more)


def balance(mix, iteration, limits=None, clock_ratio=1.0):
    return fluid.equilibrium(Load.of(mix), Times.of(iteration, clock_ratio), limits or Limits.of())


def slower(iteration, factor):
    """The same engine with every term `factor` times as long."""
    return IterationCoefficients(
        d0_seconds=iteration.d0_seconds * factor,
        dt_seconds_per_token=iteration.dt_seconds_per_token * factor,
        dn_seconds_per_decode=iteration.decode_seconds_per_sequence * factor,
        dkv_seconds_per_kv_token=iteration.dkv_seconds_per_kv_token * factor,
        da_seconds_per_token_squared=iteration.da_seconds_per_token_squared * factor,
    )


def all_numbers(point):
    return np.stack(
        [
            point.rho,
            point.step_seconds,
            point.in_service,
            point.memory_tokens,
            point.tokens_per_step,
            point.critical_scale,
            point.critical_rate,
        ]
    )
