"""Each guard alone, and their order."""

from dataclasses import replace

import pytest

from tests.planner.fakes import NOW, SLO, observation, request
from wattkeeper.domain.observation import MetricsState
from wattkeeper.domain.plan import PlanReason
from wattkeeper.planner import guards
from wattkeeper.planner.guards import Action
from wattkeeper.planner.types import PlannerSettings

SETTINGS = PlannerSettings(margin_base=0.1)


def trip(**changes):
    return guards.first_trip(request(**changes), SETTINGS)


def test_all_is_well():
    assert trip() is None


@pytest.mark.parametrize("state", [MetricsState.STALE, MetricsState.ABSENT, MetricsState.UNREACHABLE])
@pytest.mark.parametrize(
    ("age", "action", "reason"),
    [
        (30.0, Action.HOLD, PlanReason.HOLD_METRICS),
        (61.0, Action.FULL_POWER, PlanReason.FULL_POWER),
        (None, Action.FULL_POWER, PlanReason.FULL_POWER),
    ],
)
def test_unusable_metrics_hold_and_then_lift_limits(state, age, action, reason):
    found = trip(observation=observation(state=state, age_seconds=age, message="prometheus: connection refused"))
    assert (found.action, found.reason) == (action, reason)
    assert "connection refused" in found.message


def test_a_service_may_set_its_own_age():
    seen = observation(state=MetricsState.STALE, age_seconds=100.0)
    assert trip(observation=seen, metrics_max_age_seconds=120.0).action is Action.HOLD


def test_zero_replicas_are_left_alone():
    assert trip(replicas=0).reason is PlanReason.WARMING_UP


def test_a_broken_slo_needs_enough_requests():
    few = observation(rate=0.2, ttft_seconds=2.0)
    assert trip(rate=0.2, observation=few) is None
    found = trip(observation=observation(ttft_seconds=2.0, tpot_seconds=0.08))
    assert found.reason is PlanReason.GUARD_SLO
    assert "TTFT p95 is 2.00 s, target 500 ms" in found.message and "TPOT p95 is 80 ms" in found.message


def test_only_targets_of_the_slo_are_guarded():
    seen = observation(ttft_seconds=2.0)
    assert trip(observation=seen, slo=replace(SLO, ttft=None)) is None


def test_a_queue_counts_where_it_costs_the_ttft():
    assert trip(observation=observation(waiting=13.0)).reason is PlanReason.GUARD_QUEUE
    assert trip(observation=observation(waiting=11.0)) is None
    fast = observation(rate=200.0, waiting=40.0)
    assert trip(observation=fast) is None, "0.2 s of work is within half of the TTFT target"
    assert trip(observation=fast, slo=replace(SLO, ttft=None)).reason is PlanReason.GUARD_QUEUE
    assert trip(observation=observation(waiting=None)) is None


def test_preemptions_count_per_replica_and_per_request():
    assert trip(observation=observation(preemptions_per_second=0.6)).reason is PlanReason.GUARD_PREEMPTION
    assert trip(observation=observation(preemptions_per_second=0.3)) is None
    assert trip(observation=observation(rate=1.0, preemptions_per_second=0.1)) is None


def test_nothing_known_yet():
    assert trip(observation=observation(workload=None)).reason is PlanReason.WARMING_UP
    assert trip(planned_rate=None).reason is PlanReason.WARMING_UP


def test_metrics_come_first():
    seen = observation(state=MetricsState.STALE, age_seconds=10.0, ttft_seconds=9.0, time_seconds=NOW)
    assert trip(observation=seen).reason is PlanReason.HOLD_METRICS
