"""Burstiness from counters: Poisson is 1, bursts are more, ramps and restarts are not bursts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.domain.observation import EngineCounters, PodReading
from wattkeeper.telemetry.dispersion import MAX_DISPERSION, RECORD_SECONDS, DispersionEstimator
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
    """The index at the shortest window after `estimator`."""
    made = estimator(counts, step=step, scrape_every=scrape_every, pods=pods)
    return None if made.value is None else float(made.value.at(5.0))


def estimator(counts, *, step=5.0, scrape_every=1, pods=1):
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
    return made


def switching(random, bins, *, low, high, stay):
    """Counts of 5 s bins of arrivals whose rate switches between two values after about `stay` seconds."""
    means, state, left = [], 0, random.exponential(stay)
    for _ in range(bins):
        seconds, mean = 5.0, 0.0
        while seconds > 0:
            part = min(seconds, left)
            mean += part * (high if state else low)
            seconds, left = seconds - part, left - part
            if left <= 0:
                state, left = 1 - state, random.exponential(stay)
        means.append(mean)
    return random.poisson(means)


def true_index(counts, bins):
    counts = counts[: len(counts) // bins * bins].reshape(-1, bins).sum(axis=1)
    return counts.var() / counts.mean()


WINDOWS = (5.0, 10.0, 20.0, 40.0, 80.0)


def mean_indices(counts_of, repeats=12):
    return np.mean([estimator(counts_of()).value.at(WINDOWS) for _ in range(repeats)], axis=0)


def test_switching_rates_are_burstier_at_longer_windows():
    random = np.random.default_rng(5)
    options = {"low": 4.0, "high": 10.0, "stay": 20.0}
    found = mean_indices(lambda: switching(random, 360, **options))
    true = [true_index(switching(random, 40_000, **options), int(window / 5)) for window in WINDOWS]
    assert np.all(np.diff(found) > 0)
    assert found == pytest.approx(true, rel=0.2)


def test_batches_are_as_bursty_at_every_window():
    random = np.random.default_rng(6)
    found = mean_indices(lambda: 8 * random.poisson(12, 360))
    assert found == pytest.approx(8.0, rel=0.15)


@pytest.mark.parametrize("rate", [5.0, 200.0])
def test_poisson_arrivals_of_a_day_stay_poisson_at_every_window(rate):
    random = np.random.default_rng(7)

    def morning():
        at = 5.0 * np.arange(360) + random.uniform(0, 86_400)
        return random.poisson(5.0 * rate * (1.0 + 0.6 * np.sin(2 * np.pi * at / 86_400)))

    assert mean_indices(morning) == pytest.approx(1.1, abs=0.15)


def test_few_windows_never_lower_the_index_and_reach_no_further_than_the_record():
    random = np.random.default_rng(8)
    for count in (12, 20, 40, 80):
        found = estimator(8 * random.poisson(12, count)).value
        assert found.windows_seconds[-1] <= 5.0 * count / 2
        assert found.index[-1] >= 0.6 * found.index[0]
        assert max(found.index) <= MAX_DISPERSION
    assert max(estimator([0, 50_000] * 100).value.index) == MAX_DISPERSION


def test_below_the_scrape_interval_the_shortest_window_holds():
    found = estimator(8 * np.random.default_rng(9).poisson(12, 200)).value
    assert float(found.at(0.01)) == found.index[0] > 4.0


def test_the_record_holds_what_was_counted_without_gaps():
    counts = np.random.default_rng(10).poisson(40, 600)
    record = estimator(counts, pods=3).record
    assert record.span_seconds == pytest.approx(RECORD_SECONDS, abs=10.0)
    assert record.edges_seconds[-1] == 3000.0
    assert record.counts == pytest.approx(counts[-len(record.counts) :])
    assert estimator([]).record is None


def test_a_new_pod_neither_breaks_the_record_nor_looks_like_a_burst():
    made = DispersionEstimator()
    random = np.random.default_rng(11)
    totals = {"a": 500.0, "b": 1e6}
    for index in range(240):
        for pod in totals:
            totals[pod] += random.poisson(20)
        pods = ["a"] if index < 120 or index > 200 else ["a", "b"]
        view = {pod: (totals[pod], 0.0, 0.0) for pod in pods}
        made.update(namespace="team", pods=pods, snapshot=snapshot(5.0 * index, view))
    assert len(made.record.counts) == 239
    assert max(made.record.counts) < 100
    assert made.record.edges_seconds[0] == 0.0
    assert max(made.value.index) < 2.0


def test_numbers_of_one_scrape_are_preferred():
    """Two queries with a scrape between them: finished requests are newer than running ones."""
    made = DispersionEstimator()
    for index in range(100):
        at, torn = 5.0 * index, index % 7 == 0
        engine = EngineCounters(time_seconds=at, finished_requests=10.0 * index, running=4.0, waiting=0.0)
        reading = PodReading(
            namespace="team", pod="a", age_seconds=0.0, finished_requests=10.0 * (index + torn), running=4.0,
            waiting=0.0, engine=engine,
        )  # fmt: skip
        made.update(namespace="team", pods=["a"], snapshot=Snapshot(time_seconds=at, pods={("team", "a"): reading}))
    assert set(made.value.index) == {1.0}
    assert set(made.record.counts) == {10.0}


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
    assert set(made.value.index) == {1.0}


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
    assert made.value is None or all(1.0 <= index <= MAX_DISPERSION for index in made.value.index)
    assert made.record is None or made.record.span_seconds > 0


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
    assert set(made.value.index) == {1.0}
