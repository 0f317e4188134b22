"""Replicas without work bound the count: learnt, held, doubled with each vain try, let go when the rate grows."""

from dataclasses import replace

import pytest

from tests.planner.fakes import NOW, WORKLOAD, FakeEnergy, observation, predict, request
from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.plan import PlanReason
from wattkeeper.planner import unused
from wattkeeper.planner.plan import plan
from wattkeeper.planner.types import Barren, PlanMemory, PlannerSettings

SETTINGS = PlannerSettings()
KNOWN = Barren(used_replicas=3, planned_requests_per_second=40.0, seen_seconds=NOW - 60.0, hold_seconds=300.0)


def plan_one(asked):
    return plan([asked], energy=FakeEnergy(), settings=SETTINGS, predict=predict)[0]


def learn(before, *, used, idle, now=NOW, rate=40.0):
    seen = replace(observation(), pods_reporting=(used or 0) + (idle or 0), used_pods=used, unused_pods=idle)
    return unused.learn(before, seen, planned_rate=rate, now_seconds=now, settings=SETTINGS)


def test_nothing_is_learnt_from_replicas_that_all_work():
    assert learn(None, used=4, idle=0) == Barren(even_replicas=4)
    assert learn(KNOWN, used=None, idle=None) is KNOWN


def test_replicas_without_work_are_remembered():
    found = learn(None, used=5, idle=3)
    assert (found.used_replicas, found.seen_seconds, found.hold_seconds) == (5, NOW, SETTINGS.barren_hold_seconds)


def test_each_vain_try_holds_twice_as_long_up_to_a_limit():
    found = learn(None, used=5, idle=3)
    assert learn(found, used=5, idle=3, now=NOW + 15).hold_seconds == 300.0
    for _ in range(6):
        found = learn(found, used=5, idle=1, now=found.seen_seconds + found.hold_seconds + 1)
    assert found.hold_seconds == SETTINGS.barren_hold_longest_seconds


def test_a_try_that_gets_work_lifts_the_bound():
    found = learn(replace(KNOWN, hold_seconds=1200.0), used=4, idle=0)
    assert (found.used_replicas, found.hold_seconds) == (4, 300.0)
    assert learn(KNOWN, used=3, idle=0) == replace(KNOWN, even_replicas=3)


def test_no_fewer_than_all_had_work():
    assert unused.most_replicas(request(memory=PlanMemory(barren=replace(KNOWN, even_replicas=4))), SETTINGS) == 4


@pytest.mark.parametrize(
    ("known", "rate", "most"),
    [
        (KNOWN, 40.0, 3),
        (KNOWN, 47.0, 3),
        (KNOWN, 49.0, None),
        (replace(KNOWN, seen_seconds=NOW - 301.0), 40.0, 4),
        (replace(KNOWN, seen_seconds=NOW - 28801.0), 40.0, None),
        (None, 40.0, None),
    ],
)
def test_what_holds(known, rate, most):
    asked = request(planned_rate=rate, memory=PlanMemory(barren=known))
    assert unused.most_replicas(asked, SETTINGS) == most


def test_a_missed_slo_adds_no_replica_that_would_have_no_work():
    asked = request(
        replicas=3, observation=observation(ttft_seconds=2.0), planned_rate=20.0, memory=PlanMemory(barren=KNOWN)
    )
    decided = plan_one(asked)
    assert (decided.reason, decided.target.replicas) == (PlanReason.GUARD_SLO, 3)
    assert "the router left all but 3 replicas without work" in decided.message


def test_replicas_without_work_are_taken_away_even_while_the_slo_is_missed():
    asked = request(
        replicas=6, observation=observation(ttft_seconds=2.0), planned_rate=20.0, memory=PlanMemory(barren=KNOWN)
    )
    assert plan_one(asked).target.replicas == 3


def test_a_rate_well_beyond_tries_more():
    asked = request(
        replicas=3, observation=observation(ttft_seconds=2.0), planned_rate=60.0, memory=PlanMemory(barren=KNOWN)
    )
    assert plan_one(asked).target.replicas > 3


def test_bursts_bound_nothing():
    """A pod without work for minutes may be needed for the next burst."""
    seen = observation(workload=replace(WORKLOAD, dispersion=Dispersion.flat(50.0)), used_pods=3, unused_pods=2)
    assert unused.learn(None, seen, planned_rate=20.0, now_seconds=NOW, settings=SETTINGS) is None
    assert unused.most_replicas(request(observation=seen, memory=PlanMemory(barren=KNOWN)), SETTINGS) is None
