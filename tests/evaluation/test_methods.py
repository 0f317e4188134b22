import math

import numpy as np
import pytest

from wattkeeper.evaluation import baselines, methods, operator_replay, replayed
from wattkeeper.evaluation.runs import PERCENTILES, saturating_requests


def quiet(progress=0):
    del progress


def test_the_model_gets_the_point_and_no_power_limit(small_runs):
    found = methods.predictions(small_runs, 95.0)
    clocks = [float(each.clock_ratio[0]) for each in found]
    assert clocks == pytest.approx([run.point.clock_ratio for run in small_runs])
    assert np.isfinite(methods.model(small_runs, 95.0).ttft_seconds).sum() > 0.7 * len(small_runs)


def test_scraped_view_knows_long_windows_only(small_runs):
    for before, after in zip(small_runs, methods.scraped(small_runs), strict=True):
        kept = after.workload.dispersion.windows_seconds
        assert min(kept) >= 5.0 or kept == before.workload.dispersion.windows_seconds[-1:]
        assert after.ttft_seconds == before.ttft_seconds


def test_first_half_view_is_judged_by_the_second_half(small_runs, small_grid):
    at = PERCENTILES.index(95.0)
    for before, after in zip(small_runs, methods.first_half(small_runs, small_grid), strict=True):
        assert after.ttft_seconds[at] == before.halves_ttft_p95[1]
        assert math.isnan(after.ttft_seconds[0])
        past = methods.first_half_seconds(before, small_grid)
        assert len(past) == 0.525 * before.point.requests
        assert after.workload.requests_per_second == pytest.approx(len(past) / past[-1])


def test_saturation_is_held_against_its_own_requests(small_runs):
    for before, after in zip(small_runs, methods.saturating(small_runs), strict=True):
        prompts, _ = before.point.lengths.draw(before.point.requests, seed=before.point.seed)
        used = prompts[: saturating_requests(before.point)]
        assert after.workload.prompt.mean == pytest.approx(float(used.mean()), rel=1e-6)
        assert after.saturation_rps == before.saturation_rps


def test_capacity_of_the_closed_form_is_the_simulated_one_where_memory_is_ample(small_runs):
    ample = methods.saturating([run for run in small_runs if run.point.kv_share is None])
    closed = baselines.capacity(baselines.moments(ample), kv_efficiency=1.0).requests_per_second
    ratio = closed / np.array([run.saturation_rps for run in ample])
    assert np.median(ratio) == pytest.approx(1.0, abs=0.05)
    assert ratio == pytest.approx(np.ones(len(ratio)), abs=0.25)


def test_erlang_c_of_one_server_is_its_utilisation_and_grows_with_it():
    use = np.array([0.2, 0.5, 0.9, 1.2])
    assert baselines.erlang_c(np.ones(4), use) == pytest.approx([0.2, 0.5, 0.9, 1.0])
    assert baselines.erlang_c(np.array([2.0]), np.array([0.5])) == pytest.approx(1 / 3)


def test_queues_wait_longer_at_higher_percentiles_and_mean_needs_none(small_runs):
    for method in (baselines.mm1, baselines.mmc):
        median, high = (method(small_runs, p).ttft_seconds for p in (50.0, 99.0))
        assert (high >= median).all()
    for method in (baselines.mm1_mean, baselines.mmc_mean, baselines.wva):
        median, high = (method(small_runs, p).ttft_seconds for p in (50.0, 99.0))
        assert (median == high).all()


def test_a_factor_of_its_own_makes_a_proportional_method_perfect(small_runs):
    def proportional(runs, percentile):
        real = methods.truth(runs, percentile)
        return methods.Latencies(ttft_seconds=0.1 * real.ttft_seconds, tpot_seconds=3.0 * real.tpot_seconds)

    real = methods.truth(small_runs, 95.0)
    found = baselines.scaled(proportional)(small_runs, 95.0)
    assert found.ttft_seconds == pytest.approx(real.ttft_seconds)
    assert found.tpot_seconds == pytest.approx(real.tpot_seconds)


def calm(runs):
    return [run for run in runs if run.point.arrivals.kind == "poisson" and run.point.load < 0.6][:3]


def test_replay_is_close_at_a_calm_point(small_runs, small_grid):
    runs = calm(small_runs)
    method = replayed.replays(runs, small_grid, requests=600, done=quiet)
    real, found = methods.truth(runs, 50.0), method(runs, 50.0)
    assert found.ttft_seconds == pytest.approx(real.ttft_seconds, rel=0.3)
    assert found.tpot_seconds == pytest.approx(real.tpot_seconds, rel=0.3)
    assert (replayed.worse(method, method)(runs, 50.0).ttft_seconds == found.ttft_seconds).all()


def test_replay_stage_is_close_at_a_calm_point_and_bounds_itself(small_runs, small_grid):
    runs = calm(small_runs)
    guess, upper = operator_replay.replays(runs, small_grid, percentile=50.0, requests=600, done=quiet)
    real, found, bound = methods.truth(runs, 50.0), guess(runs, 50.0), upper(runs, 50.0)
    assert found.ttft_seconds == pytest.approx(real.ttft_seconds, rel=0.3)
    assert found.tpot_seconds == pytest.approx(real.tpot_seconds, rel=0.3)
    assert (bound.ttft_seconds >= found.ttft_seconds).all()
    with pytest.raises(ValueError, match="p50"):
        guess(runs, 95.0)


def test_records_are_counts_of_the_last_arrivals():
    times = np.sort(np.random.default_rng(2).uniform(0.0, 400.0, 900))
    record = operator_replay.record_of(times, requests=500)
    assert 500 <= sum(record.counts) <= 520
    assert record.edges_seconds[-1] == 400.0
    assert np.diff(record.edges_seconds) == pytest.approx(5.0)
