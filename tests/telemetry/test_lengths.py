"""Lengths from buckets: mean, shares and order are kept."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.telemetry.lengths import LARGEST_OPEN_RATIO, POINTS_PER_BUCKET, LengthsProblem, length_distribution

BOUNDS = (*tuple(float(step * 10**decade) for decade in range(5) for step in (1, 2, 5)), math.inf)


def histogram(lengths, bounds=BOUNDS, total=None) -> Histogram:
    lengths = np.asarray(lengths, dtype=float)
    return Histogram(
        upper_bounds=bounds,
        cumulative=tuple(float((lengths <= bound).sum()) for bound in bounds),
        total=float(lengths.sum()) if total is None else total,
    )


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=60))
def test_the_mean_is_exact_where_buckets_allow_and_shares_always(lengths):
    made = length_distribution(histogram(lengths))
    assert made.mean == pytest.approx(np.mean(lengths), rel=0.02)
    assert list(made.tokens) == sorted(set(made.tokens))
    assert made.tokens[0] >= 1.0
    for bound in BOUNDS[:-1]:
        share = sum(weight for length, weight in zip(made.tokens, made.weights, strict=True) if length <= bound)
        assert share == pytest.approx(np.mean([length <= bound for length in lengths]), abs=1e-6)


def test_the_mean_of_a_spread_workload_is_met_closely():
    lengths = np.exp(np.random.default_rng(1).normal(6.0, 0.9, 5000)).round() + 1
    made = length_distribution(histogram(lengths))
    assert made.mean == pytest.approx(lengths.mean(), rel=1e-5)
    for q in (0.1, 0.5, 0.9, 0.95, 0.99):
        assert made.quantile(q) == pytest.approx(np.quantile(lengths, q), rel=0.12)
    assert made.second_moment == pytest.approx((lengths**2).mean(), rel=0.03)
    assert len(made.tokens) <= POINTS_PER_BUCKET * len(BOUNDS)


@given(
    counts=st.lists(st.floats(0, 1e6), min_size=len(BOUNDS), max_size=len(BOUNDS)),
    total=st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1e12)),
)
def test_no_sum_however_wrong_breaks_it(counts, total):
    made = length_distribution(
        Histogram(upper_bounds=BOUNDS, cumulative=tuple(map(float, np.cumsum(counts))), total=total)
    )
    if sum(counts) > 0:
        assert isinstance(made, LengthDistribution)
        assert math.isfinite(made.mean)
        assert 1.0 <= made.tokens[0] <= made.tokens[-1] <= LARGEST_OPEN_RATIO * BOUNDS[-2]
    else:
        assert made is LengthsProblem.EMPTY


def test_what_lies_beyond_the_last_bound_is_not_lost():
    made = length_distribution(histogram([60_000] * 10, total=600_000))
    assert made.mean == pytest.approx(60_000, rel=1e-5)
    assert made.tokens[0] >= 50_000


def test_only_the_open_bucket_gives_the_mean_alone():
    assert length_distribution(histogram([70] * 3, bounds=(math.inf,))).tokens == (70.0,)
    assert length_distribution(histogram([70] * 3, bounds=(math.inf,), total=math.nan)) is LengthsProblem.NO_MEAN


def test_lengths_of_one_token():
    made = length_distribution(histogram([1] * 10))
    assert made.tokens == (1.0,)
    assert length_distribution(histogram([])) is LengthsProblem.EMPTY


def test_bounds_below_one_token_do_no_harm():
    made = length_distribution(histogram([1, 1, 3], bounds=(0.3, 0.5, 2.0, 5.0, math.inf)))
    assert made.tokens[0] >= 1.0
    assert made.mean == pytest.approx(5 / 3, rel=0.02)


def made_of(cumulative, *, bounds=(10.0, 100.0, math.inf), total=1.0):
    return length_distribution(Histogram(upper_bounds=bounds, cumulative=cumulative, total=total))


@pytest.mark.parametrize(
    ("cumulative", "problem"),
    [
        ((0.0, 0.0, 0.0), LengthsProblem.EMPTY),
        ((-3.0, -2.0, -1.0), LengthsProblem.EMPTY),
        ((1.0, math.nan, 3.0), LengthsProblem.NOT_FINITE),
        ((1.0, 2.0, math.inf), LengthsProblem.NOT_FINITE),
        ((5.0, 2.0, 5.0), LengthsProblem.NOT_ASCENDING),
        ((1.0, 9.0, 5.0), LengthsProblem.NOT_ASCENDING),
    ],
)
def test_what_is_no_histogram_is_named(cumulative, problem):
    assert made_of(cumulative) is problem


def test_a_step_down_of_a_rounding_error_is_none():
    made = made_of((1.0, 0.999, 2.0), total=100.0)
    assert isinstance(made, LengthDistribution)
    assert sum(made.weights) == pytest.approx(1.0)


def test_nothing_is_longer_than_the_model_allows():
    lengths = [100] * 50 + [4000] * 10
    made = length_distribution(histogram(lengths), longest_tokens=4096)
    assert made.tokens[-1] <= 4096
    assert made.mean == pytest.approx(np.mean(lengths), rel=1e-4)
    wrong = length_distribution(histogram(lengths), longest_tokens=1000)
    assert wrong.tokens[-1] >= 2000, "what was counted is not denied"


def test_an_open_bucket_reaches_as_far_as_its_mean_asks():
    lengths = np.minimum(np.random.default_rng(2).pareto(1.5, 4000) * 100 + 100, 8000).round()
    made = length_distribution(histogram(lengths, bounds=(100.0, 200.0, 500.0, math.inf)))
    assert made.mean == pytest.approx(lengths.mean(), rel=0.01)
    assert made.tokens[-1] > 1500


def test_the_density_falls_within_the_buckets_of_a_tail():
    """Of an exponential tail more lies in the lower half of a bucket."""
    lengths = np.random.default_rng(3).exponential(300.0, 20_000).round() + 1
    made = length_distribution(histogram(lengths))
    weights, tokens = np.array(made.weights), np.array(made.tokens)
    bucket = (tokens > 1000) & (tokens <= 2000)
    lower_half = weights[bucket & (tokens <= 1400)].sum() / weights[bucket].sum()
    assert lower_half == pytest.approx(np.mean(lengths[(lengths > 1000) & (lengths <= 2000)] <= 1400), abs=0.12)
