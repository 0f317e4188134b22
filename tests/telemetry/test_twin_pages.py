"""The twin's pages, of both vLLM generations, read back: what it did is what is observed."""

import pytest

from tests.telemetry.servers import Server
from tests.twin.test_replica import small_hardware
from wattkeeper.domain.observation import MetricsState
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.telemetry.observe import observe
from wattkeeper.telemetry.pages import ScrapeTarget
from wattkeeper.telemetry.scrape import ScrapeSource
from wattkeeper.twin.exposition import GpuSample, VllmProfile, dcgm_text, vllm_text
from wattkeeper.twin.replica import Replica, Request


@pytest.mark.parametrize("profile", VllmProfile)
def test_what_the_twin_did_is_observed(profile):
    replica = Replica(small_hardware(blocks=400, batched=256), now=0.0)
    replica.submit(Request(i * 0.5, 120, 30, 64) for i in range(200))
    gpu = GpuSample(
        index=0,
        uuid="GPU-1",
        node="node-1",
        model_name="NVIDIA H100 80GB HBM3",
        power_watts=321.0,
        energy_joules=0.0,
        sm_clock_mhz=1980.0,
        utilisation=0.5,
        limit_watts=600.0,
        namespace="team",
        pod="chat-0",
        container="vllm",
    )

    def answer(path, headers):
        return 200, dcgm_text([gpu]) if path == "/node" else vllm_text(replica, model_name="acme/m", profile=profile)

    clock = [0.0]
    source = ScrapeSource(clock=lambda: clock[0])
    with Server(answer) as server:
        source.set_targets(
            [
                ScrapeTarget(url=f"{server.url}/chat-0", namespace="team", pod="chat-0"),
                ScrapeTarget(url=f"{server.url}/node", role="gpu"),
            ]
        )
        for clock[0] in (10.0, 25.0, 40.0):
            replica.run(clock[0])
            snapshot = source.collect(clock[0])
    source.close()
    seen = observe(
        pods=["chat-0"],
        namespace="team",
        snapshot=snapshot,
        snapshot_error=None,
        now_seconds=40.0,
        max_age_seconds=60.0,
        slo=Slo(ttft=LatencyTarget(percentile=95, seconds=1.0), tpot=LatencyTarget(percentile=95, seconds=0.5)),
        last_workload=None,
        gpus_per_pod=1,
    )
    assert snapshot.errors == ()
    assert (seen.state, seen.message) == (MetricsState.FRESH, "")
    assert seen.workload.requests_per_second == pytest.approx(2.0, abs=0.04)
    assert seen.workload.prompt.mean == pytest.approx(120, rel=1e-4)
    assert seen.workload.output.mean == pytest.approx(30, rel=1e-4)
    assert seen.workload.prefix_hit_ratio == pytest.approx(64 / 120, abs=0.02)
    assert seen.output_tokens_per_second == pytest.approx(60.0, rel=0.1)
    assert seen.running == len(replica.running)
    assert seen.kv_usage_max == replica.kv_usage
    assert seen.ttft_attainment == 1.0
    assert seen.tpot_attainment == 1.0
    assert seen.power_watts == 321.0
    assert seen.gpus[0].power_limit_watts == 600.0
    assert seen.kv_cache.num_gpu_blocks == 400
