"""Rates through restarts, late counters and gaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry import pages
from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.counters import CounterHistory
from wattkeeper.telemetry.exposition import ExpositionReader, engine_sample, wanted_names

READER = ExpositionReader(wanted_names(("vllm:",)))
FINISHED = (aliases.FINISHED, "")


def sample(finished, *, running=0.0, waiting=0.0, profile="current"):
    page = pages.engine(finished=finished, running=running, waiting=waiting, profile=profile)
    return engine_sample(READER.read(page), ("vllm:",))


def history(window=60.0, lengths=300.0):
    return CounterHistory(rate_window_seconds=window, length_window_seconds=lengths)


def test_nothing_before_the_second_scrape():
    kept = history()
    assert kept.rates() is None
    kept.add(sample(5), 100.0)
    assert kept.rates() is None
    assert kept.length_rates() is None
    assert kept.growth_per_second() is None


def test_rates_reach_back_to_the_beginning_of_the_window_and_no_further():
    kept = history(window=60)
    for step in range(100):
        finished = 2.0 * step if step < 50 else 100 + 7.0 * (step - 50)
        kept.add(sample(finished), 1000.0 + 5 * step)
    assert kept.rates()[FINISHED] == pytest.approx(7 / 5)
    assert kept.length_rates()[FINISHED] > kept.rates()[FINISHED] / 2


def test_a_scrape_at_the_same_time_replaces_nothing():
    kept = history()
    kept.add(sample(5), 100.0)
    kept.add(sample(9), 100.0)
    kept.add(sample(9), 110.0)
    assert kept.rates()[FINISHED] == pytest.approx(0.4)


def test_a_counter_that_appears_late_began_at_zero():
    kept = history()
    page = "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
    kept.add(engine_sample(READER.read(page), ("vllm:",)), 0.0)
    kept.add(sample(20), 10.0)
    assert kept.rates()[FINISHED] == pytest.approx(2.0)
    assert kept.growth_per_second() == 0.0


@given(
    steps=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.booleans()), min_size=2, max_size=40),
)
def test_no_arrival_is_lost_or_invented_by_restarts(steps):
    """Arrivals = completions + growth, whatever the order of work and restarts."""
    kept = history(window=1e9, lengths=1e9)
    counter = in_system = arrivals = 0
    kept.add(sample(0), 0.0)
    for index, (arrived, served, restart) in enumerate(steps, start=1):
        if restart and counter > 0:
            # The engine dies right after the last scrape; then it serves less than it had counted before.
            counter = in_system = 0
            arrived, served = 0, 0
        arrivals += arrived
        in_system += arrived
        done = min(served, in_system)
        in_system -= done
        counter += done
        kept.add(sample(counter, running=in_system), float(index))
    total = len(steps) * (kept.rates()[FINISHED] + kept.growth_per_second())
    assert total == pytest.approx(arrivals, abs=1e-6)


@given(values=st.lists(st.integers(0, 1000), min_size=2, max_size=30))
def test_rates_are_never_negative(values):
    kept = history(window=20)
    for index, value in enumerate(values):
        kept.add(sample(value), 5.0 * index)
    assert all(rate >= 0.0 for rate in kept.rates().values())
    assert all(rate >= 0.0 for rate in kept.length_rates().values())


def test_memory_is_bounded():
    kept = history(window=60, lengths=300)
    for step in range(2000):
        kept.add(sample(step), 5.0 * step)
    assert len(kept._marks) <= 14
    assert len(kept._length_marks) <= 12
