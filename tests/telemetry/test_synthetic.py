"""The made-up fleet: the same for the same seed, and consistent in itself."""

from wattkeeper.domain.observation import MetricsState
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.telemetry.observe import observe
from wattkeeper.telemetry.synthetic import SyntheticSource

SLO = Slo(ttft=LatencyTarget(percentile=95, seconds=0.5), tpot=LatencyTarget(percentile=95, seconds=0.05))


def test_it_is_a_function_of_seed_and_time():
    def fleet(seed):
        return SyntheticSource(services=5, pods_per_service=2, seed=seed)

    assert fleet(1).collect(100.0) == fleet(1).collect(100.0)
    assert fleet(1).collect(100.0) != fleet(2).collect(100.0)
    assert fleet(1).collect(100.0) != fleet(1).collect(40_000.0)


def test_every_service_can_be_observed():
    source = SyntheticSource(services=20, pods_per_service=3, seed=1, gpus_per_pod=2)
    for hour in range(0, 24, 3):
        now = 3600.0 * hour
        snapshot = source.collect(now)
        for service in source.services:
            seen = observe(
                pods=service.pods,
                namespace=service.namespace,
                snapshot=snapshot,
                snapshot_error=None,
                now_seconds=now,
                max_age_seconds=60.0,
                slo=SLO,
                last_workload=None,
                gpus_per_pod=2,
            )
            assert seen.state is MetricsState.FRESH
            assert abs(seen.workload.prompt.mean / service.prompt_mean_tokens - 1) < 1e-4
            assert abs(seen.workload.output.mean / service.output_mean_tokens - 1) < 1e-4
            assert 6 * 100.0 <= seen.power_watts <= 6 * 650.0
            assert seen.workload.requests_per_second <= service.peak_requests_per_second
            assert 0.0 <= seen.kv_usage_max <= 1.0
