"""Lengths from buckets: mean, shares and order are kept."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.domain.histogram import Histogram
from wattkeeper.telemetry.lengths import OPEN_BUCKET_RATIO, POINTS_PER_BUCKET, length_distribution

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
    assert made is not None
    assert made.mean == pytest.approx(np.mean(lengths), rel=0.06)
    assert list(made.tokens) == sorted(set(made.tokens))
    assert made.tokens[0] >= 1.0
    for bound in BOUNDS[:-1]:
        share = sum(weight for length, weight in zip(made.tokens, made.weights, strict=True) if length <= bound)
        assert share == pytest.approx(np.mean([length <= bound for length in lengths]), abs=1e-6)


def test_the_mean_of_a_spread_workload_is_met_closely():
    lengths = np.exp(np.random.default_rng(1).normal(6.0, 0.9, 5000)).round() + 1
    made = length_distribution(histogram(lengths))
    assert made.mean == pytest.approx(lengths.mean(), rel=1e-5)
    assert made.quantile(0.9) == pytest.approx(np.quantile(lengths, 0.9), rel=0.25)
    assert made.second_moment == pytest.approx((lengths**2).mean(), rel=0.15)
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
        assert made is not None
        assert math.isfinite(made.mean)
        assert 1.0 <= made.tokens[0] <= made.tokens[-1] <= OPEN_BUCKET_RATIO * BOUNDS[-2]
    else:
        assert made is None


def test_what_lies_beyond_the_last_bound_is_not_lost():
    made = length_distribution(histogram([60_000] * 10, total=600_000))
    assert made.mean == pytest.approx(60_000, rel=1e-5)
    assert made.tokens[0] >= 50_000


def test_only_the_open_bucket_gives_the_mean_alone():
    assert length_distribution(histogram([70] * 3, bounds=(math.inf,))).tokens == (70.0,)
    assert length_distribution(histogram([70] * 3, bounds=(math.inf,), total=math.nan)) is None


def test_lengths_of_one_token():
    made = length_distribution(histogram([1] * 10))
    assert made.tokens == (1.0,)
    assert length_distribution(histogram([])) is None


def test_bounds_below_one_token_do_no_harm():
    made = length_distribution(histogram([1, 1, 3], bounds=(0.3, 0.5, 2.0, 5.0, math.inf)))
    assert made.tokens[0] >= 1.0
    assert made.mean == pytest.approx(5 / 3, rel=0.02)
