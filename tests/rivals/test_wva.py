import math

import pytest

from tests.rivals.looks import look, reading
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.queueing import mean_chain
from wattkeeper.rivals.settings import PolicySettingsError, ServerModel
from wattkeeper.rivals.wva import QueueingAutoscaler

SERVER = ServerModel(
    alpha_seconds=0.008, beta_seconds_per_token=2.5e-5, gamma_seconds_per_kv_token=4e-8, max_num_seqs=64
)
SLO = Slo(ttft=LatencyTarget(percentile=95, seconds=1.0), tpot=LatencyTarget(percentile=95, seconds=0.03))


def wva(**changes):
    given = {"name": "wva", "server": SERVER, "slo": SLO, "min_replicas": 1, "max_replicas": 200}
    return QueueingAutoscaler(**{**given, **changes})


def test_replicas_are_the_rate_over_what_one_serves():
    server = mean_chain.Server(
        alpha_seconds=0.008, beta_seconds_per_token=2.5e-5, gamma_seconds_per_kv_token=4e-8,
        prompt_tokens=1000, output_tokens=200, max_num_seqs=64, max_queue=640,
    )  # fmt: skip
    one = mean_chain.largest_rate(server, ttft_seconds=1.0, itl_seconds=0.03)
    assert 0.0 < one < 0.999 * server.fastest
    for rate in (0.5 * one, 1.01 * one, 7.3 * one, 40.0 * one):
        assert wva().replicas_for(rate, prompt_tokens=1000, output_tokens=200) == math.ceil(rate / one)


def test_more_rate_longer_answers_and_tighter_targets_never_need_fewer():
    policy = wva()
    found = [policy.replicas_for(0.7 * step, prompt_tokens=800, output_tokens=150) for step in range(1, 60)]
    assert found == sorted(found)
    assert found[-1] > found[0]
    longer = [policy.replicas_for(20.0, prompt_tokens=800, output_tokens=50 * step) for step in range(1, 12)]
    assert longer == sorted(longer)
    tighter = [
        wva(slo_scale=scale).replicas_for(20.0, prompt_tokens=800, output_tokens=150) for scale in (1.0, 0.7, 0.5)
    ]
    assert tighter == sorted(tighter)


def test_coefficients_as_a_benchmark_finds_them():
    found = ServerModel.benchmarked(
        d0_seconds=0.008, prefill_seconds_per_token=2e-5, decode_seconds_per_sequence=1e-4, kv_seconds_per_token=4e-8,
        prompt_tokens=900, output_tokens=300, max_num_seqs=64,
    )  # fmt: skip
    # (900 x 20 us + 300 x 100 us) / 1200
    assert found.beta_seconds_per_token == pytest.approx(4e-5)
    with pytest.raises(PolicySettingsError, match="must be above 0"):
        ServerModel.benchmarked(
            d0_seconds=0.008, prefill_seconds_per_token=2e-5, decode_seconds_per_sequence=1e-4, kv_seconds_per_token=0,
            prompt_tokens=0, output_tokens=0, max_num_seqs=64,
        )  # fmt: skip


def test_never_beyond_the_bounds():
    assert wva(max_replicas=4).replicas_for(1e6, prompt_tokens=800, output_tokens=150) == 4
    assert wva(min_replicas=3).replicas_for(0.01, prompt_tokens=800, output_tokens=150) == 3


def test_the_analyser_runs_each_minute_and_the_autoscaler_waits_240_seconds():
    policy = wva()
    wanted = policy.replicas_for(150.0, prompt_tokens=1000, output_tokens=200)
    assert wanted > 4
    replicas = 2
    for time in range(0, 255, 15):
        replicas = policy.decide(look(float(time), [reading(0, finished=0.1)], ready=replicas)).replicas
        assert replicas == (2 if time < 240 else 1)
    for time in range(255, 600, 15):
        replicas = policy.decide(look(float(time), [reading(0, finished=150.0)], ready=replicas)).replicas
        # Analysed at 300 s; the last recommendation of less, at 285 s, leaves the window at 525 s. 10 pods in 150 s.
        assert replicas == (1 if time < 525 else min(wanted, 1 + 10))


def test_without_metrics_the_last_number_is_published_again():
    policy = wva()
    assert policy.decide(look(0.0, None, ready=5)).replicas == 5
    assert policy.decide(look(600.0, None, ready=5)).replicas == 5


def test_requests_that_pile_up_count_as_arrivals():
    policy = wva(max_replicas=50)
    wanted = policy.replicas_for(150.0, prompt_tokens=1000, output_tokens=200)
    piled = reading(0, finished=50.0, growth=100.0)
    replicas = 2
    for time in range(0, 300, 15):
        replicas = policy.decide(look(float(time), [piled], ready=replicas)).replicas
    assert replicas == min(wanted, 12)


def test_idle_is_the_lowest_bound():
    policy = wva(min_replicas=2)
    replicas = 5
    for time in range(0, 300, 15):
        replicas = policy.decide(look(float(time), [reading(0, finished=0.0)], ready=replicas)).replicas or replicas
        assert replicas == (5 if time < 240 else 2)


def test_bad_parameters_are_refused():
    with pytest.raises(PolicySettingsError, match="slo_scale must be above 0"):
        wva(slo_scale=0.0)
    bad = ServerModel(alpha_seconds=0.0, beta_seconds_per_token=1e-5, gamma_seconds_per_kv_token=0.0, max_num_seqs=8)
    with pytest.raises(PolicySettingsError, match="alpha above 0"):
        wva(server=bad)
