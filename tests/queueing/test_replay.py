"""Replays: more capacity never hurts, time has no unit, bounds hold, and bad data are a verdict."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.queueing.cases import H100_8B, candidates, workload
from wattkeeper.domain.arrivals import POISSON, ArrivalRecord, Dispersion
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.domain.replay import ReplaySetting, ReplayStatus
from wattkeeper.queueing import replay, sla

SLO = Slo(ttft=LatencyTarget(percentile=95, seconds=0.5), tpot=LatencyTarget(percentile=95, seconds=0.05))
SLOW = Dispersion(windows_seconds=(0.1, 1.0, 5.0, 30.0, 60.0), index=(1.2, 2.0, 4.0, 12.0, 20.0))
ARRIVALS = ArrivalRecord(
    edges_seconds=tuple(5.0 * number for number in range(121)),
    counts=tuple(float(count) for count in np.random.default_rng(1).negative_binomial(6, 0.1, 120)),
)


def job(kind="chat", *, load=0.5, dispersion=POISSON, arrivals=None, requests=1500, seed=0, rate=None, **setting):
    values = {"replicas": 2, "max_num_seqs": 256, "max_num_batched_tokens": 2048, "kv_capacity_tokens": 420_000.0}
    asked = workload(kind, 1.0)
    if rate is None:
        found = sla.predict(H100_8B, asked, candidates(2), ttft_percentile=95, tpot_percentile=95)
        rate = load * float(found.capacity_rps[0])
    return replay.ReplayJob(
        profile=H100_8B,
        setting=ReplaySetting(**(values | setting)),
        workload=replace(asked.at_rate(rate), dispersion=dispersion),
        slo=SLO,
        arrivals=arrivals,
        requests=requests,
        seed=seed,
    )


def with_setting(asked, **changes):
    return replace(asked, setting=replace(asked.setting, **changes))


@pytest.mark.parametrize("arrivals", [None, ARRIVALS])
@pytest.mark.parametrize("kind", ["chat", "conversation", "code"])
def test_figures_hang_together(kind, arrivals):
    found = replay.run(job(kind, arrivals=arrivals, dispersion=SLOW))
    assert found.status is ReplayStatus.DONE and found.message == ""
    assert found.requests >= 1400 and found.recorded == (arrivals is not None)
    assert 0.0 < found.ttft_seconds <= found.ttft_upper_seconds < math.inf
    assert 0.0 < found.tpot_seconds <= found.tpot_upper_seconds < math.inf
    assert 0.0 <= found.attainment_lower <= found.attainment <= 1.0
    assert found.clock_ratio == 1.0 and found.cost_seconds > 0.0
    again = replay.run(job(kind, arrivals=arrivals, dispersion=SLOW))
    assert replace(again, cost_seconds=0.0) == replace(found, cost_seconds=0.0)


def within(later, sooner, *, names=("ttft", "tpot")):
    """No later than that, sampling error apart."""
    for name in names:
        value, other = getattr(later, f"{name}_seconds"), getattr(sooner, f"{name}_seconds")
        bound = getattr(sooner, f"{name}_upper_seconds") / other
        assert value <= other * max(1.02, bound), name
    if "tpot" in names:
        assert later.attainment >= sooner.attainment_lower


@settings(max_examples=40, deadline=None, derandomize=True)  # sampling error: not a new draw in every run
@given(
    st.sampled_from(["chat", "conversation", "code", "fixed"]),
    st.floats(0.1, 0.9),
    st.sampled_from([POISSON, SLOW, Dispersion.flat(8.0)]),
    st.sampled_from([None, ARRIVALS]),
    st.sampled_from(
        [
            ({"replicas": 2}, {"replicas": 3}),
            ({"replicas": 2}, {"replicas": 6}),
            ({"clock_mhz": 1200.0}, {"clock_mhz": 1500.0}),
            ({"clock_mhz": 900.0}, {"clock_mhz": None}),
            ({"power_cap_watts": 400.0}, {"power_cap_watts": 500.0}),
            ({"power_cap_watts": 350.0}, {"power_cap_watts": None}),
        ]
    ),
    st.integers(0, 99),
)
def test_more_capacity_never_hurts(kind, load, dispersion, arrivals, change, seed):
    less, more = change
    asked = job(kind, load=load, dispersion=dispersion, arrivals=arrivals, requests=600, seed=seed)
    within(replay.run(with_setting(asked, **more)), replay.run(with_setting(asked, **less)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from(["chat", "conversation"]), st.floats(0.1, 0.9), st.integers(0, 99))
def test_more_memory_never_makes_first_tokens_later(kind, load, seed):
    """Of TPOT that is not so: a memory too small keeps requests waiting, and those that run among themselves."""
    asked = job(kind, load=load, requests=600, seed=seed)
    less, more = (replay.run(with_setting(asked, kv_capacity_tokens=tokens)) for tokens in (60_000.0, 90_000.0))
    within(more, less, names=("ttft",))
    assert more.preemptions_per_request <= less.preemptions_per_request + 0.01


def slower(asked, factor):
    """The same with all times multiplied."""
    times = {
        name: getattr(asked.profile.iteration, name) * factor
        for name in ("d0_seconds", "dt_seconds_per_token", "dkv_seconds_per_kv_token", "da_seconds_per_token_squared")
    }
    decode = asked.profile.iteration.dn_seconds_per_decode
    iteration = replace(
        asked.profile.iteration, **times, dn_seconds_per_decode=None if decode is None else decode * factor
    )
    record = asked.arrivals
    return replace(
        asked,
        profile=replace(asked.profile, iteration=iteration),
        workload=replace(
            asked.workload,
            requests_per_second=asked.workload.requests_per_second / factor,
            dispersion=asked.workload.dispersion.stretched(factor),
        ),
        slo=Slo(
            ttft=replace(SLO.ttft, seconds=SLO.ttft.seconds * factor),
            tpot=replace(SLO.tpot, seconds=SLO.tpot.seconds * factor),
        ),
        arrivals=None
        if record is None
        else replace(record, edges_seconds=tuple(edge * factor for edge in record.edges_seconds)),
    )


@pytest.mark.parametrize("arrivals", [None, ARRIVALS])
@pytest.mark.parametrize("dispersion", [POISSON, SLOW])
def test_time_times_two_and_half_the_rate_change_nothing(arrivals, dispersion):
    asked = job("conversation", load=0.7, dispersion=dispersion, arrivals=arrivals)
    here, there = replay.run(asked), replay.run(slower(asked, 2.0))
    for name in ("ttft_seconds", "ttft_upper_seconds", "tpot_seconds", "tpot_upper_seconds"):
        assert getattr(there, name) == pytest.approx(2.0 * getattr(here, name), rel=1e-6)
    assert there.attainment == here.attainment and there.requests == here.requests


def test_bounds_hold_nine_times_in_ten():
    asked = job("code", load=0.45, dispersion=SLOW, requests=2000)
    truth = replay.run(replace(asked, requests=80_000, seed=999))
    runs = [replay.run(replace(asked, seed=seed)) for seed in range(24)]
    for name in ("ttft", "tpot"):
        beyond = [getattr(run, f"{name}_upper_seconds") < getattr(truth, f"{name}_seconds") for run in runs]
        assert sum(beyond) <= 8


def test_it_agrees_with_the_analytic_check_where_that_is_good():
    for kind in ("chat", "conversation"):
        asked = job(kind, load=0.4, requests=6000)
        found = replay.run(asked)
        check = sla.predict(H100_8B, asked.workload, candidates(2), ttft_percentile=95, tpot_percentile=95)
        assert found.ttft_seconds == pytest.approx(float(check.ttft_seconds[0]), rel=0.25)
        assert found.tpot_seconds == pytest.approx(float(check.tpot_seconds[0]), rel=0.25)


def test_an_overload_and_a_memory_too_small_show():
    assert replay.run(job("code", load=1.5)).ttft_seconds > 5.0
    starved = replay.run(job("conversation", load=0.6, kv_capacity_tokens=20_000.0))
    assert starved.preemptions_per_request > 0.05
    impossible = replay.run(job("conversation", load=0.2, kv_capacity_tokens=600.0))
    assert impossible.ttft_seconds == math.inf and impossible.attainment < 0.5
    short = EngineSettings(max_model_len=1024)
    assert replay.run(job("conversation", load=0.2, engine=short)).status is ReplayStatus.DONE


def test_a_service_of_many_replicas_costs_no_more():
    few = replay.run(job("chat", load=0.5, replicas=2))
    many = replay.run(job("chat", rate=300.0 * job("chat").workload.requests_per_second, replicas=600))
    assert many.ttft_seconds == pytest.approx(few.ttft_seconds, rel=0.15)
    assert many.requests < 2000


@pytest.mark.parametrize(
    "changes",
    [
        {"rate": 0.0},
        {"rate": math.nan},
        {"rate": math.inf},
        {"rate": -1.0},
        {"replicas": 0},
        {"kv_capacity_tokens": math.nan},
        {"kv_capacity_tokens": 0.0},
        {"kv_capacity_tokens": 5.0},
        {"max_num_seqs": 0},
        {"max_num_batched_tokens": 0},
        {"clock_mhz": math.nan},
    ],
)
def test_what_cannot_be_replayed_is_a_verdict(changes):
    found = replay.run(job(**({"rate": 5.0} | changes)))
    assert found.status is ReplayStatus.INVALID and found.message
    assert found.ttft_seconds == found.tpot_upper_seconds == math.inf and found.attainment == 0.0


def test_a_rate_of_next_to_nothing_is_refused_and_does_not_hang():
    found = replay.run(job(rate=1e-18, requests=60))
    assert found.status is ReplayStatus.INVALID
    assert "at least 1e-09 requests/s" in found.message


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(0.01, 40.0)),
    st.integers(-1, 4),
    st.one_of(st.none(), st.floats(allow_nan=True), st.floats(1.0, 900.0)),
    st.one_of(st.floats(allow_nan=True), st.floats(1.0, 1e5)),
    st.integers(-5, 300),
    st.integers(-5, 4096),
)
def test_no_input_raises(rate, replicas, cap, tokens, seqs, batched):
    found = replay.run(
        job(
            rate=rate,
            replicas=replicas,
            power_cap_watts=cap,
            kv_capacity_tokens=tokens,
            max_num_seqs=seqs,
            max_num_batched_tokens=batched,
            requests=60,
        )
    )
    assert isinstance(found.status, ReplayStatus)
