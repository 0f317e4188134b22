"""Readings of pods become an observation: states, sums, gaps, arrivals."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.domain.arrivals import POISSON, Dispersion
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import GpuReading, KvCacheInfo, MetricsState, PodReading
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.telemetry.observe import observe
from wattkeeper.telemetry.source import Snapshot

SLO = Slo(ttft=LatencyTarget(percentile=95, seconds=0.5), tpot=LatencyTarget(percentile=50, seconds=0.05))
LAST = Workload(
    requests_per_second=9.0,
    prompt=LengthDistribution.fixed(700),
    output=LengthDistribution.fixed(80),
    dispersion=Dispersion.flat(3.0),
    prefix_hit_ratio=0.25,
)


def latency(fast: float, slow: float) -> Histogram:
    """`fast` per second at or below 0.1 s, `slow` between 0.5 and 1 s."""
    bounds = (0.1, 0.5, 1.0, math.inf)
    return Histogram(
        upper_bounds=bounds, cumulative=(fast, fast, fast + slow, fast + slow), total=0.05 * fast + 0.75 * slow
    )


def tokens(rate: float, mean: float) -> Histogram:
    return Histogram(upper_bounds=(100.0, 1000.0, math.inf), cumulative=(0.0, rate, rate), total=rate * mean)


def pod(name: str = "a", **more) -> PodReading:
    fields = {
        "namespace": "team",
        "pod": name,
        "age_seconds": 3.0,
        "running": 4.0,
        "waiting": 1.0,
        "kv_usage": 0.3,
        "finished_per_second": 2.0,
        "in_system_growth_per_second": 0.5,
        "generation_tokens_per_second": 300.0,
        "preemptions_per_second": 0.1,
        "prefix_queries_per_second": 1000.0,
        "prefix_hits_per_second": 400.0,
        "ttft_seconds": latency(2.0, 0.0),
        "tpot_seconds": latency(2.0, 0.0),
        "prompt_tokens": tokens(2.0, 500),
        "output_tokens": tokens(2.0, 150),
        "kv_cache": KvCacheInfo(num_gpu_blocks=1000, block_size=16),
        "gpus": (GpuReading(uuid=f"GPU-{name}", node="n", power_watts=300.0),),
    }
    return PodReading(**{**fields, **more})


IDLE = {
    "running": 0.0,
    "waiting": 0.0,
    "finished_per_second": 0.0,
    "in_system_growth_per_second": 0.0,
    "generation_tokens_per_second": 0.0,
    "prefix_queries_per_second": 0.0,
    "prefix_hits_per_second": 0.0,
    "ttft_seconds": latency(0.0, 0.0),
    "tpot_seconds": latency(0.0, 0.0),
    "prompt_tokens": tokens(0.0, 0),
    "output_tokens": tokens(0.0, 0),
}


def look(*readings: PodReading, pods=None, error=None, now=1000.0, last=None, taken=1000.0, **more):
    snapshot = Snapshot(time_seconds=taken, pods={(reading.namespace, reading.pod): reading for reading in readings})
    return observe(
        pods=[reading.pod for reading in readings] if pods is None else pods,
        namespace="team",
        snapshot=snapshot,
        snapshot_error=error,
        now_seconds=now,
        max_age_seconds=60.0,
        slo=SLO,
        last_workload=last,
        **more,
    )


def test_two_pods_add_up():
    seen = look(pod("a"), pod("b", kv_usage=0.5, kv_cache=KvCacheInfo(size_tokens=9000), ttft_seconds=latency(1, 1)))
    assert (seen.state, seen.message) == (MetricsState.FRESH, "")
    assert (seen.pods_expected, seen.pods_reporting, seen.age_seconds) == (2, 2, 3.0)
    assert (seen.running, seen.waiting, seen.kv_usage_max, seen.kv_usage_mean) == (8.0, 2.0, 0.5, 0.4)
    assert seen.workload.requests_per_second == 5.0, "completions plus growth"
    assert seen.workload.prompt.mean == pytest.approx(500)
    assert seen.workload.output.mean == pytest.approx(150)
    assert seen.workload.prefix_hit_ratio == 0.4
    assert seen.ttft_attainment == 0.75
    assert seen.ttft_seconds == pytest.approx(0.9)
    assert seen.tpot_seconds == pytest.approx(0.05)
    assert seen.preemptions_per_second == 0.2
    assert seen.power_watts == 600.0
    assert seen.joules_per_token == 1.0
    assert seen.kv_cache.size_tokens == 9000, "the pod with the least room speaks for all"
    assert [gpu.uuid for gpu in seen.gpus] == ["GPU-a", "GPU-b"]
    assert seen.gpus_by_pod["b"][0].uuid == "GPU-b"
    assert not seen.idle


def test_pods_of_others_do_not_count():
    seen = look(pod("a"), dataclasses.replace(pod("a"), namespace="other"), pod("stranger"), pods=["a"])
    assert seen.running == 4.0
    assert seen.pods_reporting == 1


def test_idle_is_a_real_zero_and_keeps_the_lengths_last_seen():
    seen = look(pod("a", **IDLE), last=LAST)
    assert seen.state is MetricsState.FRESH
    assert seen.workload.requests_per_second == 0.0
    assert seen.workload.prompt.mean == 700
    assert seen.workload.prefix_hit_ratio == 0.25
    assert seen.idle
    assert (seen.ttft_seconds, seen.ttft_attainment, seen.joules_per_token) == (None, None, None)
    assert seen.power_watts == 300.0


def test_idle_from_the_start_has_no_workload():
    seen = look(pod("a", **IDLE))
    assert seen.state is MetricsState.FRESH
    assert seen.workload is None
    assert not seen.idle


@pytest.mark.parametrize("field", ["running", "waiting", "finished_per_second"])
def test_a_needed_series_that_is_missing_is_not_a_zero(field):
    seen = look(pod("a", **{**IDLE, field: None}), last=LAST)
    assert seen.state is MetricsState.ABSENT
    assert seen.workload is None
    assert "are not there yet" in seen.message
    assert look(pod("a"), pod("b", **{field: None})).state is MetricsState.PARTIAL


def test_a_stale_pod_is_left_out():
    seen = look(pod("a"), pod("b", age_seconds=61.0, running=100.0))
    assert seen.state is MetricsState.PARTIAL
    assert seen.pods_reporting == 1
    assert seen.running == 4.0
    assert seen.message == "series of b are stale, the oldest by 61 s"


def test_readings_age_with_their_snapshot():
    assert look(pod("a"), now=1050.0).state is MetricsState.FRESH
    assert look(pod("a"), now=1050.0).age_seconds == 53.0
    seen = look(pod("a"), now=1060.0)
    assert (seen.state, seen.age_seconds) == (MetricsState.STALE, 63.0)
    assert seen.running is None


def test_a_failing_source_is_held_until_the_age_runs_out():
    held = look(pod("a"), now=1030.0, error="Prometheus is down")
    assert held.state is MetricsState.FRESH
    assert held.message == "last collection failed: Prometheus is down"
    lost = look(pod("a"), now=1100.0, error="Prometheus is down")
    assert lost.state is MetricsState.UNREACHABLE
    assert "series of a are stale" in lost.message
    assert not lost.state.usable


def test_no_series_at_all():
    seen = look(pods=["a", "b", "c", "d", "e"])
    assert seen.state is MetricsState.ABSENT
    assert seen.message.startswith("no series of a, b, c and 2 more: is the pod scraped")
    assert look(pods=[]).message == "no ready pods to measure"
    assert look(pods=["a"], error="down").state is MetricsState.UNREACHABLE


def test_before_the_first_snapshot():
    common = {"pods": ["a"], "namespace": "team", "snapshot": None, "now_seconds": 5.0, "max_age_seconds": 60.0}
    first = observe(**common, snapshot_error=None, slo=SLO, last_workload=LAST)
    assert (first.state, first.workload) == (MetricsState.ABSENT, None)
    failed = observe(**common, snapshot_error="refused", slo=SLO, last_workload=LAST)
    assert failed.state is MetricsState.UNREACHABLE
    assert "refused" in failed.message


def test_arrivals_are_never_negative_and_one_drain_hides_no_other_arrivals():
    aborted = pod("a", finished_per_second=1.0, in_system_growth_per_second=-5.0)
    assert look(aborted).workload.requests_per_second == 0.0
    assert look(aborted, pod("b")).workload.requests_per_second == 2.5
    assert look(pod("a", in_system_growth_per_second=None)).workload.requests_per_second == 2.0


@pytest.mark.parametrize(
    ("reporting_rate", "last_rate", "expected"),
    [
        (2.0, 4.0, 4.0),  # half of the pods blind: what they did is still assumed
        (2.0, 3.0, 3.0),  # a new pod that reports nothing yet: no demand is invented
        (2.0, 9.0, 4.0),  # demand did fall: scaled to all pods, not the old rate
        (5.0, 3.0, 5.0),  # demand rose: what is measured counts
    ],
)
def test_what_is_assumed_of_pods_that_do_not_report(reporting_rate, last_rate, expected):
    seen = look(
        pod("a", finished_per_second=reporting_rate, in_system_growth_per_second=0.0),
        pods=["a", "b"],
        last=LAST.at_rate(last_rate),
    )
    assert seen.state is MetricsState.PARTIAL
    assert seen.workload.requests_per_second == expected


def test_dispersion_is_given_or_kept_and_at_least_one():
    assert look(pod()).workload.dispersion == POISSON
    assert look(pod(), last=LAST).workload.dispersion == Dispersion.flat(3.0)
    assert look(pod(), last=LAST, dispersion=Dispersion.flat(2.0)).workload.dispersion == Dispersion.flat(2.0)


@pytest.mark.parametrize(
    "gpus",
    [
        (),
        (GpuReading(uuid="x", node="n"),),
        (GpuReading(uuid="x", node="n", power_watts=200.0), GpuReading(uuid="y", node="n")),
    ],
)
def test_power_is_none_unless_all_of_it_is_known(gpus):
    seen = look(pod("a"), pod("b", gpus=gpus))
    assert seen.power_watts is None
    assert seen.joules_per_token is None


def test_a_pod_with_fewer_gpus_than_it_should_have_has_no_power():
    assert look(pod("a"), gpus_per_pod=1).power_watts == 300.0
    assert look(pod("a"), gpus_per_pod=2).power_watts is None


def test_the_agents_readings_fill_in_where_the_exporter_knows_no_pods():
    known = {"a": [GpuReading(uuid="x", node="n", power_watts=210.0)]}
    assert look(pod("a", gpus=()), gpus_by_pod=known).power_watts == 210.0
    assert look(pod("a"), gpus_by_pod=known).power_watts == 300.0


def test_a_gpu_that_two_pods_share_counts_once():
    shared = (GpuReading(uuid="x", node="n", power_watts=300.0),)
    seen = look(pod("a", gpus=shared), pod("b", gpus=shared))
    assert seen.power_watts == 300.0
    assert len(seen.gpus) == 1


def test_without_output_there_is_no_energy_per_token():
    assert look(pod("a", generation_tokens_per_second=None)).joules_per_token is None
    assert look(pod("a", generation_tokens_per_second=0.0)).joules_per_token is None


def test_an_slo_of_one_half_asks_only_for_that():
    snapshot = Snapshot(time_seconds=0.0, pods={("team", "a"): pod("a")})
    seen = observe(
        pods=["a"],
        namespace="team",
        snapshot=snapshot,
        snapshot_error=None,
        now_seconds=0.0,
        max_age_seconds=60.0,
        slo=Slo(ttft=None, tpot=LatencyTarget(percentile=95, seconds=0.05)),
        last_workload=None,
    )
    assert (seen.ttft_seconds, seen.ttft_attainment) == (None, None)
    assert seen.tpot_attainment == 0.5


maybe = st.one_of(st.none(), st.floats(0, 1e4))


@given(
    readings=st.lists(
        st.fixed_dictionaries(
            {
                "age_seconds": st.floats(0, 200),
                "running": maybe,
                "waiting": maybe,
                "kv_usage": maybe,
                "finished_per_second": maybe,
                "in_system_growth_per_second": st.one_of(st.none(), st.floats(-1e3, 1e3)),
                "generation_tokens_per_second": maybe,
                "prefix_queries_per_second": maybe,
                "prefix_hits_per_second": maybe,
                "ttft_seconds": st.sampled_from([None, latency(0, 0), latency(1, 2)]),
                "prompt_tokens": st.sampled_from([None, tokens(0, 0), tokens(3, 400)]),
                "gpus": st.sampled_from([(), (GpuReading(uuid="x", node="n", power_watts=5.0),)]),
            }
        ),
        max_size=5,
    ),
    extra=st.integers(0, 2),
    last=st.sampled_from([None, LAST]),
    error=st.sampled_from([None, "down"]),
)
def test_any_mixture_of_gaps_gives_an_honest_observation(readings, extra, last, error):
    made = [pod(f"p{index}", **fields) for index, fields in enumerate(readings)]
    names = [reading.pod for reading in made] + [f"unseen{index}" for index in range(extra)]
    seen = look(*made, pods=names, last=last, error=error)
    good = [
        reading
        for reading in made
        if reading.age_seconds <= 60 and None not in (reading.running, reading.waiting, reading.finished_per_second)
    ]
    assert seen.pods_reporting == len(good)
    assert seen.state.usable == bool(good)
    assert (seen.state is MetricsState.FRESH) == (bool(good) and len(good) == len(names))
    assert (seen.message == "") == (seen.state is MetricsState.FRESH and error is None)
    if not good:
        assert seen.workload is None
        assert not seen.idle
        return
    if seen.workload is not None:
        assert seen.workload.requests_per_second >= 0.0
        assert 0.0 <= seen.workload.prefix_hit_ratio <= 1.0
    assert (seen.power_watts is None) == any(not reading.gpus for reading in good)
