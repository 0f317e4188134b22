"""A replica under a power cap: the clock that its work leaves."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.queueing.cases import H100_8B, LENGTHS
from wattkeeper.physics import power, step
from wattkeeper.replica import arrivals, governed, stepper
from wattkeeper.replica.types import ReplicaConfig

CONFIG = ReplicaConfig(iteration=H100_8B.iteration, max_num_seqs=256, max_num_batched_tokens=2048, kv_blocks=26_000)


def served(rate, count=1500):
    prompt, output = LENGTHS["conversation"]
    return arrivals.requests(arrivals.poisson(rate=rate, count=count, seed=4), prompt=prompt, output=output, seed=4)


def run(cap, rate=6.0, config=CONFIG):
    return governed.simulate(config, served(rate), profile=H100_8B, power_cap_watts=cap)


def test_a_cap_that_does_not_bind_changes_nothing():
    capped, clock = run(700.0, rate=1.0)
    free = stepper.simulate(CONFIG, served(1.0))
    assert clock == pytest.approx(1.0)
    assert capped.ttft_seconds == pytest.approx(free.ttft_seconds, rel=1e-6)
    assert capped.finish_seconds == pytest.approx(free.finish_seconds, rel=1e-9)


def test_a_lower_cap_means_a_lower_clock_and_later_tokens():
    runs = [run(cap) for cap in (700.0, 500.0, 400.0, 350.0)]
    clocks = [clock for _, clock in runs]
    late = [float(np.quantile(outcome.tpot_seconds, 0.9)) for outcome, _ in runs]
    assert clocks == sorted(clocks, reverse=True) and clocks[-1] < 0.7
    assert late == sorted(late)


def test_a_lock_is_the_highest_clock():
    locked = ReplicaConfig(
        iteration=H100_8B.iteration, max_num_seqs=256, max_num_batched_tokens=2048, kv_blocks=26_000, clock_ratio=0.5
    )
    _, clock = run(650.0, config=locked)
    assert clock == pytest.approx(0.5)


@pytest.mark.parametrize("cap", [200.0, 300.0, 450.0, 699.0])
@pytest.mark.parametrize("work", [(0.0, 3.0, 2000.0), (500.0, 40.0, 30_000.0), (2000.0, 120.0, 200_000.0)])
def test_the_clock_is_that_of_the_power_model(cap, work):
    prefill, decodes, kv_tokens = work
    composition = {"prefill_tokens": prefill, "decode_sequences": decodes, "kv_tokens": kv_tokens}
    governor = governed.Governor(H100_8B, power_cap_watts=cap, clock_ratio=1.0)
    for _ in range(2):  # it walks from where it was
        ratio, stretch = governor.clock(prefill=prefill, decodes=decodes, kv_tokens=kv_tokens, products=0.0)
    known = float(power.clock_under_cap(H100_8B, power_cap_watts=cap, **composition))
    assert known - 0.02 <= ratio <= known + 1e-6
    seconds = step.step_seconds(H100_8B.iteration, clock_ratio=ratio, **composition)
    joules = power.step_joules(H100_8B, step_seconds=seconds, clock_ratio=ratio, **composition)
    held = power.held_step_seconds(H100_8B, power_cap_watts=cap, joules=joules, step_seconds=seconds)
    assert stretch == pytest.approx(max(1.0, float(held / seconds)), rel=1e-6)


def test_what_can_never_run_ends_nothing():
    requests = served(6.0, count=50)
    tiny = ReplicaConfig(iteration=H100_8B.iteration, max_num_seqs=4, max_num_batched_tokens=64, kv_blocks=40)
    outcome, _ = governed.simulate(tiny, requests, profile=H100_8B, power_cap_watts=300.0)
    assert outcome.refused.any() and np.isfinite(outcome.finish_seconds[~outcome.refused]).all()


@pytest.mark.parametrize("lock", [1.0, 0.8])
@pytest.mark.parametrize("caution", [1.3, math.inf])
def test_the_replay_is_as_cautious_as_the_power_model(caution, lock):
    wary = replace(H100_8B, cap_caution=caution)
    composition = {"prefill_tokens": 0.0, "decode_sequences": 8.0, "kv_tokens": 8000.0}
    governor = governed.Governor(wary, power_cap_watts=450.0, clock_ratio=lock)
    for _ in range(2):
        ratio, _ = governor.clock(prefill=0.0, decodes=8.0, kv_tokens=8000.0, products=0.0)
    known = float(power.clock_under_cap(wary, power_cap_watts=450.0, clock_ratio=lock, **composition))
    assert known - 0.02 <= ratio <= known + 1e-6
    assert ratio < float(power.clock_under_cap(H100_8B, power_cap_watts=450.0, clock_ratio=lock, **composition))
