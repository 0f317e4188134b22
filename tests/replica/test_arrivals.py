"""Arrival processes have the stated rate and burstiness; lengths have the stated distribution."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.replica import arrivals

GENERATORS = {
    "poisson": lambda rate, count, seed: arrivals.poisson(rate=rate, count=count, seed=seed),
    "batches": lambda rate, count, seed: arrivals.batches(rate=rate, count=count, mean_size=4.0, seed=seed),
    "gamma": lambda rate, count, seed: arrivals.gamma(rate=rate, count=count, coefficient_of_variation=2.0, seed=seed),
    "on_off": lambda rate, count, seed: arrivals.on_off(rate=rate, count=count, seed=seed),
    "on_off with a floor": lambda rate, count, seed: arrivals.on_off(
        rate=rate, count=count, seed=seed, peak=2.5, floor=0.5, on_seconds=0.3
    ),
    "clusters": lambda rate, count, seed: arrivals.clusters(
        rate=rate, count=count, mean_size=4.0, spread_seconds=0.5, seed=seed
    ),
    "wandering": lambda rate, count, seed: arrivals.wandering(
        rate=rate, count=count, deviation=0.3, memory_seconds=2.0, seed=seed
    ),
    "surges": lambda rate, count, seed: arrivals.surges(
        rate=rate, count=count, every_seconds=20.0, share=0.2, spread_seconds=1.0, seed=seed
    ),
}


@pytest.mark.parametrize("name", GENERATORS)
@settings(deadline=None, max_examples=20)
@given(rate=st.floats(0.05, 500.0), count=st.integers(0, 400), seed=st.integers(0, 2**31))
def test_times_ascend_and_follow_from_the_seed(name, rate, count, seed):
    times = GENERATORS[name](rate, count, seed)
    assert times.shape == (count,)
    assert (times >= 0.0).all()
    assert (np.diff(times) >= 0.0).all()
    assert np.array_equal(times, GENERATORS[name](rate, count, seed))


@pytest.mark.parametrize("name", GENERATORS)
def test_mean_rate(name):
    assert 200_000 / GENERATORS[name](20.0, 200_000, 1)[-1] == pytest.approx(20.0, rel=0.06)


@pytest.mark.parametrize(
    ("times", "window", "expected"),
    [
        (arrivals.poisson(rate=10.0, count=200_000, seed=1), 5.0, 1.0),
        (arrivals.batches(rate=10.0, count=200_000, mean_size=4.0, seed=1), 5.0, 7.0),
        (arrivals.gamma(rate=10.0, count=200_000, coefficient_of_variation=2.0, seed=1), 20.0, 4.0),
        # Of a Poisson process switched on (share p) and off: 1 + 2 (1 - p) tau rate / p, tau = on * off / (on + off).
        (arrivals.on_off(rate=10.0, count=400_000, peak=4.0, seed=1), 60.0, 1.0 + 2.0 * 3.0 * 0.75 * 10.0),
    ],
)
def test_dispersion_is_the_one_of_theory(times, window, expected):
    assert arrivals.dispersion(times, window)[0] == pytest.approx(expected, rel=0.1)


def test_clusters_are_batches_seen_from_afar_and_poisson_from_near():
    times = arrivals.clusters(rate=10.0, count=400_000, mean_size=4.0, spread_seconds=1.0, seed=1)
    near, far = arrivals.dispersion(times, [0.01, 60.0])
    assert near == pytest.approx(1.0, abs=0.1)
    assert far == pytest.approx(7.0, rel=0.1)


def test_a_wandering_rate_has_the_dispersion_of_theory():
    # Far below its memory t: 1 + rate t (exp(deviation^2) - 1).
    times = arrivals.wandering(rate=10.0, count=800_000, deviation=0.4, memory_seconds=30.0, seed=1)
    assert arrivals.dispersion(times, 3.0)[0] == pytest.approx(1.0 + 30.0 * np.expm1(0.16) * 0.97, rel=0.1)


@pytest.mark.parametrize(
    "made",
    [
        lambda: arrivals.clusters(rate=1.0, count=5, mean_size=0.5, spread_seconds=1.0, seed=1),
        lambda: arrivals.wandering(rate=1.0, count=5, deviation=0.5, memory_seconds=0.0, seed=1),
        lambda: arrivals.surges(rate=1.0, count=5, every_seconds=1.0, share=1.0, spread_seconds=1.0, seed=1),
    ],
)
def test_parameters_out_of_range_are_named(made):
    with pytest.raises(ValueError, match=r"need"):
        made()


def test_dispersion_of_on_off_grows_with_the_window():
    short, long = arrivals.dispersion(arrivals.on_off(rate=10.0, count=100_000, seed=3), [0.01, 10.0])
    assert short < 2.0 < 10.0 < long
    assert np.isnan(arrivals.dispersion(np.array([0.0, 1.0]), 10.0)[0])


def test_replay_keeps_the_pattern():
    recorded = [5.0, 6.0, 6.0, 9.0]
    assert arrivals.replay(recorded).tolist() == [0.0, 1.0, 1.0, 4.0]
    mean_gap = 4.0 / 3.0
    assert arrivals.replay(recorded, count=6, start=2) == pytest.approx(
        [0.0, 3.0, 3.0 + mean_gap, 4.0 + mean_gap, 4.0 + mean_gap, 7.0 + mean_gap]
    )
    assert arrivals.replay(recorded, rate=3.0) == pytest.approx(np.array([0.0, 1.0, 1.0, 4.0]) / (3.0 * mean_gap))
    assert arrivals.replay(recorded, count=0).tolist() == []


def test_lengths_follow_the_distribution():
    lengths = LengthDistribution(tokens=(0.2, 10.5, 300.0), weights=(0.1, 0.6, 0.3))
    drawn = arrivals.lengths(lengths, count=50_000, seed=2)
    assert set(drawn) == {1, 10, 11, 300}
    assert drawn.mean() == pytest.approx(0.1 + 6.3 + 90.0, rel=0.02)


def test_requests_draw_lengths_apart_from_arrivals():
    prompt, output = LengthDistribution.lognormal(mean=300, coefficient_of_variation=1.0), LengthDistribution.fixed(20)
    few = arrivals.requests(arrivals.poisson(rate=1.0, count=2000, seed=7), prompt=prompt, output=output, seed=7)
    many = arrivals.requests(arrivals.poisson(rate=9.0, count=2000, seed=7), prompt=prompt, output=output, seed=7)
    assert np.array_equal(few.prompt_tokens, many.prompt_tokens)
    assert abs(np.corrcoef(np.diff(few.arrival_seconds), few.prompt_tokens[1:])[0, 1]) < 0.1
    assert few.hit_tokens is None


def test_prefix_hits_hold_on_average_in_whole_blocks():
    prompt, output = LengthDistribution.lognormal(mean=300, coefficient_of_variation=0.5), LengthDistribution.fixed(20)
    drawn = arrivals.requests(np.zeros(20_000), prompt=prompt, output=output, seed=1, prefix_hit_ratio=0.3)
    assert (drawn.hit_tokens % 16 == 0).all()
    assert drawn.hit_tokens.sum() / drawn.prompt_tokens.sum() == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize(
    "make",
    [
        lambda: arrivals.poisson(rate=0.0, count=1, seed=0),
        lambda: arrivals.poisson(rate=float("nan"), count=1, seed=0),
        lambda: arrivals.poisson(rate=1.0, count=-1, seed=0),
        lambda: arrivals.batches(rate=1.0, count=1, mean_size=0.5, seed=0),
        lambda: arrivals.gamma(rate=1.0, count=1, coefficient_of_variation=0.0, seed=0),
        lambda: arrivals.on_off(rate=1.0, count=1, seed=0, peak=1.0),
        lambda: arrivals.on_off(rate=1.0, count=1, seed=0, floor=1.0),
        lambda: arrivals.replay([1.0]),
        lambda: arrivals.replay([1.0, 1.0]),
        lambda: arrivals.replay([2.0, 1.0]),
        lambda: arrivals.replay([1.0, 2.0], rate=-1.0),
        lambda: arrivals.requests(
            np.zeros(1),
            prompt=LengthDistribution.fixed(1),
            output=LengthDistribution.fixed(1),
            seed=0,
            prefix_hit_ratio=1.5,
        ),
    ],
)
def test_refuses_what_makes_no_sense(make):
    with pytest.raises(ValueError, match=r"must|needs"):
        make()
