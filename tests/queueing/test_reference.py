"""The oracle itself: hand-computed runs."""

import random

import pytest

from tests.queueing import reference
from wattkeeper.physics.profile import IterationCoefficients

PLAIN = IterationCoefficients(
    d0_seconds=0.01, dt_seconds_per_token=1e-4, dkv_seconds_per_kv_token=0.0, da_seconds_per_token_squared=0.0
)


def test_one_request_by_hand():
    outcome = reference.run(
        PLAIN,
        [reference.Request(arrival=0.0, prompt=100, output=3)],
        max_num_seqs=4,
        budget=64,
        kv_capacity=1000,
        warm_up=0.0,
    )
    assert outcome.ttft == [pytest.approx(0.01 + 64e-4 + 0.01 + 36e-4)]  # two chunks
    assert outcome.tpot == [pytest.approx(0.01 + 1e-4)]
    assert outcome.steps == 4


def test_slots_are_first_come_first_served():
    requests = [reference.Request(arrival=0.0, prompt=10, output=5) for _ in range(3)]
    outcome = reference.run(PLAIN, requests, max_num_seqs=1, budget=64, kv_capacity=1000, warm_up=0.0)
    assert outcome.ttft == sorted(outcome.ttft)
    assert outcome.ttft[1] == pytest.approx(0.011 + 4 * 0.0101 + 0.011)


def test_memory_pressure_preempts_and_everything_still_finishes():
    requests = [reference.Request(arrival=0.0, prompt=50, output=100) for _ in range(8)]
    outcome = reference.run(PLAIN, requests, max_num_seqs=8, budget=512, kv_capacity=500, warm_up=0.0)
    assert outcome.preemptions > 0
    assert len(outcome.ttft) == 8


def test_arrivals_have_the_stated_rate_and_dispersion():
    rng = random.Random(1)
    assert reference.dispersion(reference.poisson(rng, 20.0, 20_000)) == pytest.approx(1.0, abs=0.15)
    times = reference.batches(rng, 20.0, 20_000, 2.5)
    assert reference.dispersion(times) == pytest.approx(4.0, rel=0.15)
    assert len(times) / times[-1] == pytest.approx(20.0, rel=0.1)
    assert reference.dispersion(reference.bursts(rng, 20.0, 20_000)) > 4.0
