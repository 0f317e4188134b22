"""Scaling laws, monotonicity and bad input of the fluid balance."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.queueing import cases
from tests.queueing.fluid_cases import (
    A100_MIXED,
    CLASSES,
    ITERATIONS,
    LIMITS,
    P512D20,
    all_numbers,
    balance,
    limits_of,
    mix_of,
    slower,
)
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing import fluid
from wattkeeper.queueing.fluid import Limits, Times
from wattkeeper.queueing.mix import Load, Mix
from wattkeeper.queueing.verdict import Cause, Constraint

GOOD = (Cause.NONE, Cause.IDLE)


@given(CLASSES, ITERATIONS, LIMITS, st.sampled_from([2.0, 4.0, 0.5]))
def test_time_and_rates_scale_together(classes, iteration, limits, factor):
    """Everything `factor` times slower and rates as much lower: the same verdict, the same inventory."""
    before = balance(mix_of(classes), iteration, limits_of(limits))
    after = balance(mix_of(classes, 1.0 / factor), slower(iteration, factor), limits_of(limits))
    assert after.cause.item() is before.cause.item()
    assert after.binding.item() is before.binding.item()
    for name in ("rho", "in_service", "memory_tokens", "tokens_per_step", "critical_scale"):
        assert float(getattr(after, name)) == pytest.approx(float(getattr(before, name)), rel=1e-9)
    assert float(after.step_seconds) == pytest.approx(factor * float(before.step_seconds), rel=1e-9)
    assert float(after.critical_rate) == pytest.approx(float(before.critical_rate) / factor, rel=1e-9)


@given(CLASSES, ITERATIONS, LIMITS, st.floats(1.0, 20.0))
def test_more_of_any_limit_never_hurts(classes, iteration, limits, factor):
    capacity, slots, more = limits
    less = balance(mix_of(classes), iteration, limits_of(limits))
    for raised in [(capacity * factor, slots, more), (capacity, slots, round(more * factor))]:
        found = balance(mix_of(classes), iteration, limits_of(raised))
        assert float(found.critical_scale) >= float(less.critical_scale) * (1 - 1e-12)
        assert bool(found.stable) >= bool(less.stable)


@given(CLASSES, ITERATIONS, LIMITS)
def test_a_faster_clock_never_hurts(classes, iteration, limits):
    found = balance(mix_of(classes), iteration, limits_of(limits), clock_ratio=np.linspace(0.2, 1.0, 9))
    assert np.all(np.diff(found.critical_rate) >= -1e-9 * found.critical_rate[-1])
    assert np.all(np.diff(found.stable.astype(int)) >= 0)
    assert np.all(np.diff(found.rho) <= 1e-12)


@given(CLASSES, ITERATIONS, st.floats(0.05, 0.95))
def test_inventory_is_linear_in_step_time_and_rate(classes, iteration, load):
    mix = mix_of(classes)
    rho = float(balance(mix, iteration).rho)
    assume(0.0 < rho < 1e6)
    mix = mix.scaled(load / rho)
    found = balance(mix, iteration)
    counts = fluid.inventory(mix, found.step_seconds)
    np.testing.assert_allclose(counts, mix.rates_per_second * float(found.step_seconds))
    assert float(counts @ mix.kv_integral) == pytest.approx(float(found.memory_tokens), rel=1e-9)
    assert float(counts @ (mix.decode_steps + 1.0)) == pytest.approx(float(found.in_service), rel=1e-9)
    # dT = d0 + work of everything resident: the balance closes.
    work = float(found.rho) * float(found.step_seconds)
    assert iteration.d0_seconds + work == pytest.approx(float(found.step_seconds), rel=1e-9)


@given(CLASSES, ITERATIONS, LIMITS)
def test_the_critical_scale_is_where_the_verdict_turns(classes, iteration, limits):
    mix = mix_of(classes)
    found = balance(mix, iteration, limits_of(limits))
    assume(found.cause.item() not in (Cause.IDLE, Cause.REQUEST_EXCEEDS_KV))
    scale = float(found.critical_scale)
    assume(1e-9 < scale < 1e9)
    below = balance(mix.scaled(scale * (1 - 1e-6)), iteration, limits_of(limits))
    above = balance(mix.scaled(scale * (1 + 1e-6)), iteration, limits_of(limits))
    assert below.cause.item() is Cause.NONE
    assert not bool(above.stable)
    if found.binding.item() is not Constraint.COMPUTE:
        # Two limits may bind at once: then either is told.
        assert above.cause.item().value in {found.binding.item().value, below.binding.item().value}
    assert float(below.critical_rate) == pytest.approx(float(found.critical_rate), rel=1e-9)


@given(CLASSES, ITERATIONS, LIMITS, st.integers(0, 5), st.floats(0.0, 3.0))
def test_one_more_request_never_helps(classes, iteration, limits, index, extra):
    mix = mix_of(classes)
    rates = mix.rates_per_second.copy()
    rates[index % len(rates)] += extra
    more = Mix(
        rates_per_second=rates,
        prompt_tokens=mix.prompt_tokens,
        decode_steps=mix.decode_steps,
        cached_tokens=mix.cached_tokens,
    )
    before, after = balance(mix, iteration, limits_of(limits)), balance(more, iteration, limits_of(limits))
    assert float(after.rho) >= float(before.rho)
    assert float(after.memory_tokens) >= float(before.memory_tokens) * (1 - 1e-12)
    assert bool(after.stable) <= bool(before.stable)


@given(CLASSES, ITERATIONS, LIMITS)
def test_points_judged_together_are_judged_alike(classes, iteration, limits):
    """Loads x candidates in one call equal one call each."""
    loads = [Load.of(mix_of(classes, factor)) for factor in (0.0, 0.1, 1.0, 10.0)]
    stacked = Load.stack(loads)
    grid = Limits.of(
        kv_capacity_tokens=np.array([limits[0], 2e6]),
        max_num_seqs=limits[1],
        max_num_batched_tokens=limits[1] + limits[2],
    )
    column = Load(**{name: value[:, None] for name, value in vars(stacked).items()})
    together = fluid.equilibrium(column, Times.of(iteration), grid)
    assert together.rho.shape == (4, 2)
    for (row, load), at in itertools.product(enumerate(loads), range(2)):
        alone = fluid.equilibrium(
            load,
            Times.of(iteration),
            Limits.of(
                kv_capacity_tokens=grid.kv_capacity_tokens[at],
                max_num_seqs=limits[1],
                max_num_batched_tokens=limits[1] + limits[2],
            ),
        )
        assert together.cause[row, at] is alone.cause.item()
        np.testing.assert_array_equal(all_numbers(together)[:, row, at], all_numbers(alone))


def test_moments_of_a_workload_equal_its_classes():
    for kind in cases.LENGTHS:
        load = cases.workload(kind, 7.0, prefix_hit_ratio=0.3)
        by_moments, by_classes = Load.of_workload(load, replicas=2.0), Load.of(Mix.of_workload(load, replicas=2.0))
        for name in ("requests", "decode_steps", "kv_reads", "kv_integral", "longest_tokens"):
            assert float(getattr(by_moments, name)) == pytest.approx(float(getattr(by_classes, name)), rel=1e-6)
        assert float(by_moments.computed_tokens) == pytest.approx(float(by_classes.computed_tokens), rel=1e-3)


def test_what_binds_is_named():
    many, few = Limits.of(kv_capacity_tokens=1e9), Limits.of(max_num_seqs=4)
    assert balance(P512D20, A100_MIXED, many).binding.item() is Constraint.COMPUTE
    slots = balance(P512D20, A100_MIXED, few)
    assert slots.cause.item() is Cause.SLOTS
    budget = balance(P512D20, A100_MIXED, Limits.of(max_num_batched_tokens=256))
    assert budget.cause.item() is Cause.TOKEN_BUDGET
    memory = balance(P512D20, A100_MIXED, Limits.of(kv_capacity_tokens=3000))
    assert memory.cause.item() is Cause.KV_MEMORY
    over = balance(P512D20.scaled(2.0), A100_MIXED, Limits.of(kv_capacity_tokens=3000))
    assert over.cause.item() is Cause.OVERLOAD
    assert np.isinf(over.memory_tokens)
    words = {each.name: each for each in fluid.conditions(memory, Limits.of(kv_capacity_tokens=3000))}
    assert words["Compute"].holds
    assert not words["KvMemory"].holds
    assert words["KvMemory"].excess == pytest.approx(float(memory.memory_tokens) / 3000 - 1)
    assert "KvMemory fails" in str(words["KvMemory"])


BAD_CLASSES = [
    ({"rates_per_second": [], "prompt_tokens": [], "decode_steps": []}, Cause.NO_CLASSES),
    ({"rates_per_second": [0.0, 0.0], "prompt_tokens": 5, "decode_steps": 5}, Cause.IDLE),
    ({"rates_per_second": [1.0, -1.0], "prompt_tokens": 5, "decode_steps": 5}, Cause.RATE_NEGATIVE),
    ({"rates_per_second": [np.nan], "prompt_tokens": 5, "decode_steps": 5}, Cause.RATE_NOT_FINITE),
    ({"rates_per_second": [np.inf], "prompt_tokens": 5, "decode_steps": 5}, Cause.RATE_NOT_FINITE),
    ({"rates_per_second": [1e308], "prompt_tokens": 5000, "decode_steps": 5000}, Cause.RATE_NOT_FINITE),
    ({"rates_per_second": [1.0], "prompt_tokens": 0, "decode_steps": 5}, Cause.LENGTH_INVALID),
    ({"rates_per_second": [1.0], "prompt_tokens": 5, "decode_steps": -1}, Cause.LENGTH_INVALID),
    ({"rates_per_second": [1.0], "prompt_tokens": np.nan, "decode_steps": 1}, Cause.LENGTH_INVALID),
    ({"rates_per_second": [1.0], "prompt_tokens": 5, "decode_steps": 1, "cached_tokens": 6}, Cause.LENGTH_INVALID),
    ({"rates_per_second": [1.0, 2.0], "prompt_tokens": [1, 2, 3], "decode_steps": 1}, Cause.SHAPES_DISAGREE),
    ({"rates_per_second": [1.0], "prompt_tokens": 120_000, "decode_steps": 1}, Cause.REQUEST_EXCEEDS_KV),
    ({"rates_per_second": [1.0], "prompt_tokens": 200_000, "decode_steps": 1}, Cause.REQUEST_EXCEEDS_MODEL_LENGTH),
]


@pytest.mark.parametrize(("classes", "cause"), BAD_CLASSES)
def test_bad_classes_are_named(classes, cause):
    limits = Limits.of(kv_capacity_tokens=100_000, max_num_seqs=64, max_num_batched_tokens=512, max_model_len=150_000)
    found = balance(Mix.of(**classes), A100_MIXED, limits)
    assert found.cause.item() is cause
    assert not np.isnan(all_numbers(found)).any()
    assert bool(found.stable) == (cause in GOOD)
    if cause is Cause.IDLE:
        assert float(found.rho) == float(found.memory_tokens) == 0.0
        assert np.isinf(found.critical_scale)


@pytest.mark.parametrize(
    "limits",
    [
        {"kv_capacity_tokens": np.nan},
        {"kv_capacity_tokens": -5},
        {"kv_capacity_tokens": 0},
        {"max_num_seqs": 0},
        {"max_num_batched_tokens": 0},
        {"max_num_seqs": 64, "max_num_batched_tokens": 32},
        {"max_model_len": np.nan},
    ],
)
def test_bad_limits_are_named(limits):
    found = balance(P512D20, A100_MIXED, Limits.of(**limits))
    assert found.cause.item() in (Cause.LIMITS_CONTRADICT,)
    assert float(found.critical_rate) == 0.0
    assert not np.isnan(all_numbers(found)).any()
    assert all(
        not np.isnan([each.value, each.bound, each.excess]).any()
        for each in fluid.conditions(found, Limits.of(**limits))
    )


@pytest.mark.parametrize("d0", [0.0, -1.0, np.nan, np.inf])
def test_bad_coefficients_are_named(d0):
    bad = IterationCoefficients(
        d0_seconds=d0, dt_seconds_per_token=1e-5, dkv_seconds_per_kv_token=1e-7, da_seconds_per_token_squared=0.0
    )
    found = balance(P512D20, bad)
    assert found.cause.item() is Cause.COEFFICIENTS_INVALID
    assert not np.isnan(all_numbers(found)).any()


@pytest.mark.parametrize("ratio", [0.0, -0.5, np.nan, np.inf, 1.5])
def test_bad_clocks_are_named(ratio):
    found = balance(P512D20, A100_MIXED, clock_ratio=np.array([1.0, ratio]))
    assert found.cause[0] is Cause.NONE
    assert found.cause[1] is Cause.COEFFICIENTS_INVALID


ANYTHING = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING), max_size=3),
    st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING),
    st.tuples(ANYTHING, ANYTHING, ANYTHING, ANYTHING),
    ANYTHING,
)
def test_nothing_raises_and_nothing_is_nan(classes, terms, limits, clock):
    columns = [np.array(each) for each in zip(*classes, strict=True)] or [np.zeros(0)] * 4
    d0, dt, dn, dkv, da = terms
    iteration = IterationCoefficients(
        d0_seconds=d0,
        dt_seconds_per_token=dt,
        dn_seconds_per_decode=dn,
        dkv_seconds_per_kv_token=dkv,
        da_seconds_per_token_squared=da,
    )
    mix = Mix.of(
        rates_per_second=columns[0], prompt_tokens=columns[1], decode_steps=columns[2], cached_tokens=columns[3]
    )
    capacity, slots, budget, length = limits
    found = balance(
        mix,
        iteration,
        Limits.of(kv_capacity_tokens=capacity, max_num_seqs=slots, max_num_batched_tokens=budget, max_model_len=length),
        clock_ratio=clock,
    )
    assert isinstance(found.cause.item(), Cause)
    assert isinstance(found.binding.item(), Constraint)
    assert not np.isnan(all_numbers(found)).any()


@pytest.mark.parametrize(
    ("rate", "replicas", "cause"),
    [
        (0.0, 1.0, Cause.IDLE),
        (-1.0, 1.0, Cause.RATE_NEGATIVE),
        (np.nan, 1.0, Cause.RATE_NOT_FINITE),
        (1.0, 0.0, Cause.LIMITS_CONTRADICT),
        (1.0, np.nan, Cause.RATE_NOT_FINITE),
    ],
)
def test_bad_workloads_are_named(rate, replicas, cause):
    load = Load.of_workload(cases.workload("chat", 1.0).at_rate(rate), replicas)
    assert load.cause.item() is cause
    assert not np.isnan([float(value) for name, value in vars(load).items() if name != "cause"]).any()
