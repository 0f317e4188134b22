"""Burstiness from counters: Poisson is 1, bursts are more, ramps and restarts are not bursts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.domain.arrivals import POISSON
from wattkeeper.domain.observation import PodReading
from wattkeeper.telemetry.dispersion import DispersionEstimator
from wattkeeper.telemetry.source import Snapshot


def snapshot(at, pods):
    """`pods`: name -> (finished, running, age)."""
    return Snapshot(
        time_seconds=at,
        pods={
            ("team", name): PodReading(
                namespace="team", pod=name, age_seconds=age, finished_requests=finished, running=running, waiting=0.0
            )
            for name, (finished, running, age) in pods.items()
        },
    )


def fed(counts, *, step=5.0, scrape_every=1, pods=1):
    """An estimator that saw these arrivals per step, spread over pods, each scraped every so many steps."""
    made = DispersionEstimator(bin_seconds=5.0)
    totals = np.zeros(pods)
    shown = totals.copy()
    stamps = np.zeros(pods)
    random = np.random.default_rng(3)
    for index, count in enumerate(counts):
        totals += random.multinomial(count, np.ones(pods) / pods)
        at = step * (index + 1)
        for pod in range(pods):
            if (index + pod) % scrape_every == 0:
                shown[pod], stamps[pod] = totals[pod], at
        view = {f"p{pod}": (float(shown[pod]), 0.0, at - stamps[pod]) for pod in range(pods)}
        made.update(namespace="team", pods=view, snapshot=snapshot(at, view))
    return None if made.value is None else float(made.value.at(5.0))


def test_poisson_is_one():
    random = np.random.default_rng(1)
    values = [fed(random.poisson(20, 120)) for _ in range(20)]
    assert np.mean(values) == pytest.approx(1.07, abs=0.12), "clamped at 1 from below"


@pytest.mark.parametrize("pods", [1, 3])
@pytest.mark.parametrize("scrape_every", [1, 3])
def test_bursts_are_seen_through_pods_and_slow_scrapes(pods, scrape_every):
    random = np.random.default_rng(2)
    # Batches of 8: index of dispersion 8.
    values = [fed(8 * random.poisson(3, 240), pods=pods, scrape_every=scrape_every) for _ in range(8)]
    assert 4.0 < np.mean(values) < 12.0


def test_a_ramp_is_no_burst():
    random = np.random.default_rng(4)
    ramp = [fed(random.poisson(np.linspace(5, 200, 120))) for _ in range(8)]
    assert np.mean(ramp) < 1.5


def test_slow_scrapes_do_not_look_like_bursts():
    assert fed([10] * 200, scrape_every=3) == 1.0


def test_too_little_is_unknown():
    assert fed([]) is None
    assert fed([5] * 5) is None
    assert fed([0] * 100) is None


def test_restarts_and_new_pods_start_afresh():
    made = DispersionEstimator(bin_seconds=5.0)
    for index in range(60):
        finished = 10.0 * index if index < 30 else 10.0 * (index - 30)
        pods = {"a": (finished, 0.0, 0.0)} | ({"b": (50.0 + 10.0 * index, 0.0, 0.0)} if index > 45 else {})
        made.update(namespace="team", pods=["a", "b"], snapshot=snapshot(5.0 * index, pods))
    assert made.value == POISSON


def test_readings_without_counters_are_left_out():
    made = DispersionEstimator()
    empty = Snapshot(
        time_seconds=0.0, pods={("team", "a"): PodReading(namespace="team", pod="a", age_seconds=0.0, running=1.0)}
    )
    for _ in range(20):
        made.update(namespace="team", pods=["a"], snapshot=empty)
    assert made.value is None
    with pytest.raises(ValueError, match="positive"):
        DispersionEstimator(bin_seconds=0)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 100), st.floats(0, 60)), max_size=40))
def test_any_readings_give_at_least_one_and_a_bound(readings):
    made = DispersionEstimator()
    for index, reading in enumerate(readings):
        made.update(namespace="team", pods=["a"], snapshot=snapshot(5.0 * index, {"a": reading}))
    assert made.value is None or 1.0 <= float(made.value.at(5.0)) <= 100.0


def test_a_gap_in_the_measurements_is_no_burst():
    made = DispersionEstimator(bin_seconds=5.0)
    random = np.random.default_rng(7)
    at = total = 0.0
    for seconds in [5.0] * 30 + [1800.0] + [5.0] * 30:
        at += seconds
        total += random.poisson(4.0 * seconds)
        view = {"p": (total, 0.0, 0.0)}
        made.update(namespace="team", pods=view, snapshot=snapshot(at, view))
    assert made.value is not None
    assert float(made.value.at(5.0)) < 1.7


@given(st.lists(st.floats(5.0, 9.0), min_size=30, max_size=60))
def test_steady_arrivals_are_none_whatever_the_bins_are(lengths):
    made = DispersionEstimator(bin_seconds=5.0)
    at = 0.0
    for seconds in lengths:
        at += seconds
        view = {"p": (10.0 * at, 0.0, 0.0)}
        made.update(namespace="team", pods=view, snapshot=snapshot(at, view))
    assert made.value == POISSON
