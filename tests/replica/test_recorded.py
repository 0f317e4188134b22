"""Arrivals for replays: the wanted rate, the given burstiness, time kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.domain.arrivals import POISSON, ArrivalRecord, Dispersion
from wattkeeper.replica import arrivals, recorded

SLOW = Dispersion(windows_seconds=(0.1, 1.0, 5.0, 30.0, 60.0), index=(1.2, 2.0, 4.0, 12.0, 20.0))
CURVES = {
    "poisson": POISSON,
    "batches": Dispersion.flat(6.0),
    "slow": SLOW,
    "wide": Dispersion(windows_seconds=(0.01, 0.1, 1.0, 10.0, 100.0), index=(2.0, 3.0, 6.0, 17.0, 41.0)),
    "falling": Dispersion(windows_seconds=(1.0, 60.0), index=(5.0, 2.0)),
}


def record(times, *, span, bin_seconds=5.0) -> ArrivalRecord:
    edges = np.arange(0.0, span + bin_seconds / 2, bin_seconds)
    return ArrivalRecord(edges_seconds=tuple(edges), counts=tuple(map(float, np.histogram(times, edges)[0])))


def steady(count, bins=60, bin_seconds=5.0) -> ArrivalRecord:
    edges = tuple(bin_seconds * number for number in range(bins + 1))
    return ArrivalRecord(edges_seconds=edges, counts=(float(count),) * bins)


@pytest.mark.parametrize("name", CURVES)
def test_a_made_up_process_follows_the_curve(name):
    curve = CURVES[name]
    times = recorded.synthetic(rate=20.0, dispersion=curve, span_seconds=20_000.0, seed=3)
    assert len(times) / 20_000.0 == pytest.approx(20.0, rel=0.02)
    assert (np.diff(times) >= 0.0).all() and times[0] >= 0.0 and times[-1] < 20_000.0
    found = arrivals.dispersion(times, curve.windows_seconds)
    wanted = np.maximum(curve.index, curve.index[0])
    assert found == pytest.approx(wanted, rel=0.35)


def test_slow_requests_know_no_fast_windows():
    times = recorded.synthetic(rate=0.02, dispersion=SLOW, span_seconds=1e5, seed=1)
    assert len(times) == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize("rate", [5.0, 20.0, 35.0, 60.0])
def test_a_record_is_brought_to_a_rate_and_keeps_its_bursts(rate):
    times = recorded.synthetic(rate=20.0, dispersion=SLOW, span_seconds=1200.0, seed=3)
    found = recorded.from_record(
        record(times, span=1200.0), rate=rate, dispersion=SLOW, start_seconds=-60.0, span_seconds=7200.0, seed=1
    )
    assert len(found) / 7200.0 == pytest.approx(rate, rel=0.02)
    assert found[0] >= 0.0 and found[-1] < 7200.0
    before, after = arrivals.dispersion(times, 30.0)[0], arrivals.dispersion(found, 30.0)[0]
    share = min(1.0, rate / 20.0)
    assert after == pytest.approx(1.0 + (before - 1.0) * share, rel=0.4)


def test_within_a_bin_requests_come_in_batches_of_the_shortest_index():
    found = recorded.from_record(
        steady(100), rate=20.0, dispersion=Dispersion.flat(7.0), start_seconds=0.0, span_seconds=6000.0, seed=5
    )
    assert arrivals.dispersion(found, 0.01)[0] == pytest.approx(7.0, rel=0.1)
    even = recorded.from_record(
        steady(100), rate=20.0, dispersion=POISSON, start_seconds=0.0, span_seconds=6000.0, seed=5
    )
    assert arrivals.dispersion(even, 0.01)[0] == pytest.approx(1.0, rel=0.1)


def test_a_trend_is_taken_out():
    counts = tuple(float(count) for count in range(60, 120))
    rising = ArrivalRecord(edges_seconds=tuple(5.0 * number for number in range(61)), counts=counts)
    found = recorded.from_record(rising, rate=20.0, dispersion=POISSON, start_seconds=0.0, span_seconds=300.0, seed=2)
    first, second = np.count_nonzero(found < 150.0), np.count_nonzero(found >= 150.0)
    assert first == pytest.approx(second, rel=0.06)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([2.0, 4.0, 0.5]), st.integers(0, 1000), st.sampled_from(sorted(CURVES)))
def test_time_times_a_factor_and_the_rate_over_it_change_nothing(factor, seed, name):
    curve = CURVES[name]
    here = recorded.synthetic(rate=10.0, dispersion=curve, span_seconds=200.0, seed=seed)
    there = recorded.synthetic(
        rate=10.0 / factor, dispersion=curve.stretched(factor), span_seconds=200.0 * factor, seed=seed
    )
    assert there == pytest.approx(here * factor, rel=1e-9)
    base = steady(50, bins=12)
    longer = ArrivalRecord(edges_seconds=tuple(edge * factor for edge in base.edges_seconds), counts=base.counts)
    common = {"dispersion": curve, "seed": seed}
    here = recorded.from_record(base, rate=13.0, start_seconds=-9.0, span_seconds=100.0, **common)
    there = recorded.from_record(
        longer, rate=13.0 / factor, start_seconds=-9.0 * factor, span_seconds=100.0 * factor, **common
    )
    assert there == pytest.approx(here * factor, rel=1e-9)


def test_the_same_seed_gives_the_same_arrivals():
    one, two, other = (
        recorded.from_record(steady(30), rate=8.0, dispersion=SLOW, start_seconds=0.0, span_seconds=300.0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_a_record_of_too_little_is_not_used():
    assert not recorded.usable(None, rate=5.0)
    assert not recorded.usable(steady(1, bins=40), rate=5.0)
    assert not recorded.usable(steady(10), rate=100.0)
    assert recorded.usable(steady(10), rate=5.0)
    with pytest.raises(ValueError, match="40 recorded requests cannot be brought to 5"):
        recorded.from_record(
            steady(1, bins=40), rate=5.0, dispersion=POISSON, start_seconds=0.0, span_seconds=10.0, seed=0
        )
    with pytest.raises(ValueError, match="rate and span"):
        recorded.synthetic(rate=float("nan"), dispersion=POISSON, span_seconds=1.0, seed=0)
