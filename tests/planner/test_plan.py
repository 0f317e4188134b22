"""Scenarios of the joint decision, one per rule."""

from dataclasses import replace

import numpy as np
import pytest

from tests.planner.fakes import (
    CLOCK_LEVERS,
    ENGINE_LEVERS,
    LEVERS,
    NOW,
    REPLICA_LEVERS,
    SLO,
    FakeEnergy,
    applied,
    each,
    make_profile,
    observation,
    predict,
    predict_one,
    request,
)
from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.observation import MetricsState
from wattkeeper.domain.plan import Binding, LatencyTarget, PlanReason, Target
from wattkeeper.physics.profile import Provenance
from wattkeeper.planner import sizing
from wattkeeper.planner.plan import plan
from wattkeeper.planner.types import PlanMemory, PlannerSettings

SETTINGS = PlannerSettings()


def decide(*, settings=SETTINGS, energy=None, check=predict, **changes):
    return plan([request(**changes)], energy=energy or FakeEnergy(), settings=settings, predict=check)[0]


def test_replicas_follow_the_load():
    counts = [decide(rate=rate, levers=REPLICA_LEVERS, replicas=12).target.replicas for rate in (1, 8, 20, 40, 80)]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] > 8


def test_a_deeper_cap_is_taken_where_slack_is():
    found = decide(rate=20.0, replicas=4)
    assert found.target.power_cap_watts < 500 and found.reason is PlanReason.LEAST_ENERGY
    assert found.prediction.tpot_seconds * 1.1 <= 0.05
    assert found.binding is Binding.TPOT
    assert "instead of" in found.message and "TPOT p95" in found.message


def test_the_clock_lever_is_used_alike():
    found = decide(rate=20.0, replicas=4, levers=CLOCK_LEVERS)
    assert found.target.clock_mhz < 1980 and found.target.power_cap_watts is None


def test_without_the_power_lever_only_replicas_move():
    found = decide(rate=8.0, replicas=6, cap=400.0, power_lever=False)
    assert found.target.power_cap_watts is None and found.target.replicas < 6


def test_hysteresis_keeps_what_is_nearly_as_good():
    best = decide(rate=20.0, replicas=4).target
    found = decide(rate=20.0, replicas=best.replicas, cap=best.power_cap_watts + 10)
    assert found.reason is PlanReason.KEEP and found.binding is Binding.HYSTERESIS
    assert found.target.power_cap_watts == best.power_cap_watts + 10
    assert "below 3%" in found.message and found.runner_up is not None


def test_a_scale_down_waits_for_the_stabilised_rate():
    found = decide(rate=20.0, stabilised=60.0, replicas=8, levers=REPLICA_LEVERS)
    assert found.target.replicas == 8 and found.reason is PlanReason.STABILISING
    assert found.binding is Binding.STABILISATION and "recent 60 req/s" in found.message
    partly = decide(rate=20.0, stabilised=45.0, replicas=8, levers=REPLICA_LEVERS)
    assert 3 < partly.target.replicas < 8


def test_a_fresh_start_takes_no_replica_away():
    found = decide(rate=20.0, replicas=8, planned_rate_stabilised=None)
    assert found.target.replicas == 8 and "too little is known" in found.message


@pytest.mark.parametrize(
    ("memory", "word"),
    [
        (PlanMemory(last_scale_up_seconds=NOW - 299), "added"),
        (PlanMemory(last_scale_down_seconds=NOW - 59), "removed"),
        (PlanMemory(last_guard_seconds=NOW - 299), "at risk"),
    ],
)
def test_a_scale_down_waits_for_its_timers(memory, word):
    found = decide(rate=20.0, replicas=8, memory=memory)
    assert found.target.replicas == 8 and word in found.message
    old = PlanMemory(last_scale_up_seconds=NOW - 301, last_scale_down_seconds=NOW - 61, last_guard_seconds=NOW - 301)
    assert decide(rate=20.0, replicas=8, memory=old).target.replicas < 8


def test_power_goes_up_at_once_but_down_only_after_its_timer():
    moved = PlanMemory(last_cap_seconds=NOW - 10)
    assert decide(rate=8.0, replicas=2, cap=600.0, memory=moved).target.power_cap_watts == 600.0
    raised = decide(rate=14.0, replicas=2, cap=350.0, memory=moved)
    assert raised.target.replicas > 2 or raised.target.power_cap_watts is None or raised.target.power_cap_watts > 350


def test_limits_wait_for_starting_replicas():
    found = decide(rate=35.0, replicas=6, ready_replicas=3, cap=400.0)
    assert found.target.power_cap_watts is None and found.target.replicas == 6
    assert "only 3 of 6 replicas are ready" in found.message
    assert decide(rate=35.0, replicas=6, cap=500.0).target.power_cap_watts is not None
    assert decide(rate=5.0, replicas=2, ready_replicas=0, cap=400.0).target.power_cap_watts is None


def test_idle_goes_to_the_floor_of_everything():
    seen = observation(rate=0.0, running=0.0, waiting=0.0, ttft_seconds=None, tpot_seconds=None)
    found = decide(rate=0.0, replicas=5, observation=seen)
    assert found.reason is PlanReason.IDLE
    assert (found.target.replicas, found.target.power_cap_watts) == (1, 350.0)
    held = decide(rate=0.0, stabilised=40.0, replicas=5, observation=seen)
    assert (held.target.replicas, held.target.power_cap_watts) == (5, 350.0)
    both = replace(CLOCK_LEVERS, power_cap=LEVERS.power_cap)
    deepest = decide(rate=0.0, replicas=5, observation=seen, levers=both).target
    assert (deepest.replicas, deepest.power_cap_watts, deepest.clock_mhz) == (1, 350.0, 900.0)


def test_idle_limits_still_bear_a_first_request():
    seen = observation(rate=0.0, running=0.0, waiting=0.0)
    tight = replace(SLO, tpot=LatencyTarget(percentile=95, seconds=0.0125))
    found = decide(rate=0.0, replicas=1, observation=seen, slo=tight)
    assert 550 <= found.target.power_cap_watts <= 600


def test_unusable_metrics_never_take_anything_away():
    seen = observation(state=MetricsState.STALE, age_seconds=30.0)
    held = decide(rate=1.0, replicas=8, cap=500.0, observation=seen)
    assert held.target == request(replicas=8, cap=500.0).current and held.reason is PlanReason.HOLD_METRICS
    lost = decide(rate=1.0, replicas=8, cap=500.0, observation=replace(seen, age_seconds=90.0))
    assert (lost.target.replicas, lost.target.power_cap_watts) == (8, None) and lost.reason is PlanReason.FULL_POWER


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (observation(ttft_seconds=0.7), PlanReason.GUARD_SLO),
        (observation(waiting=30.0), PlanReason.GUARD_QUEUE),
        (observation(preemptions_per_second=2.0), PlanReason.GUARD_PREEMPTION),
    ],
)
def test_guards_add_capacity_at_once(seen, reason):
    found = decide(rate=20.0, replicas=4, cap=400.0, observation=seen)
    assert found.reason is reason
    assert (found.target.replicas, found.target.power_cap_watts) == (5, None)


def test_a_guard_takes_what_the_models_ask_for_and_waits_for_what_starts():
    seen = observation(rate=60.0, ttft_seconds=0.7)
    assert decide(rate=60.0, replicas=3, observation=seen).target.replicas == 8
    seen = observation(ttft_seconds=0.7)
    assert decide(replicas=6, ready_replicas=4, observation=seen).target.replicas == 6
    fresh = PlanMemory(last_scale_up_seconds=NOW - 100)
    assert decide(replicas=6, memory=fresh, observation=seen).target.replicas == 6


def test_a_guard_stays_within_the_users_and_the_clusters_bounds():
    seen = observation(ttft_seconds=0.7)
    assert decide(replicas=12, observation=seen).target.replicas == 12
    found = decide(replicas=4, free_gpus=0, observation=seen)
    assert found.target.replicas == 4 and "no free GPUs" in found.message


def test_an_exhausted_guard_may_change_the_engine():
    seen = observation(rate=110.0, tpot_seconds=0.08)
    found = decide(rate=110.0, replicas=12, observation=seen, levers=ENGINE_LEVERS, rollout_allowed=True)
    assert found.reason is PlanReason.GUARD_SLO
    assert found.engine_change == EngineChange(max_num_batched_tokens=2048) and found.target.replicas == 12
    kept = decide(rate=110.0, replicas=12, observation=seen, levers=ENGINE_LEVERS)
    assert not kept.engine_change and not kept.feasible


def test_no_feasible_plan_names_the_constraint_and_what_to_do():
    found = decide(rate=200.0)
    assert not found.feasible and found.reason is PlanReason.INFEASIBLE and found.binding is Binding.STABILITY
    assert found.target.replicas == 12 and found.target.power_cap_watts is None
    assert "even with 12 replicas at full power" in found.message and "levers.replicas.max" in found.message
    tight = replace(SLO, tpot=LatencyTarget(percentile=95, seconds=0.012))
    unseen = observation(rate=90.0, tpot_seconds=None)
    found = decide(rate=90.0, slo=tight, observation=unseen)
    assert found.binding is Binding.TPOT and "TPOT 12 ms at p95 cannot be met at 90 req/s" in found.message
    hopeless = replace(SLO, tpot=LatencyTarget(percentile=95, seconds=0.005))
    assert "even without load" in decide(rate=1.0, slo=hopeless, observation=unseen).message
    assert "add GPUs" in decide(rate=100.0, free_gpus=1).message


def test_a_rollout_pays_or_does_not_happen():
    found = decide(rate=40.0, replicas=6, levers=ENGINE_LEVERS, rollout_allowed=True)
    assert found.engine_change == EngineChange(max_num_batched_tokens=2048)
    assert found.target.engine.max_num_batched_tokens == 2048
    assert found.target.power_cap_watts is None, "full power while one replica is away"
    assert "Rolling out max_num_batched_tokens=2048" in found.message
    dear = replace(SETTINGS, engine_dwell_seconds=60.0)
    kept = decide(rate=40.0, replicas=6, levers=ENGINE_LEVERS, rollout_allowed=True, settings=dear)
    assert not kept.engine_change


def test_a_rollout_never_scales_down_in_the_same_plan():
    found = decide(rate=20.0, replicas=8, levers=replace(ENGINE_LEVERS, power_cap=None), rollout_allowed=True)
    assert not (found.engine_change and found.target.replicas < 8)


def test_a_rollout_needs_room():
    tight = {"rate": 22.0, "replicas": 3, "levers": ENGINE_LEVERS, "rollout_allowed": True}
    assert decide(**tight, free_gpus=1).engine_change
    found = decide(**tight, free_gpus=0)
    assert not found.engine_change and "free GPU" in found.runner_up.why_not
    beyond = decide(**(tight | {"rate": 26.0}), free_gpus=0)
    assert not beyond.feasible and "max_num_batched_tokens=2048 would do, but a roll-out takes" in beyond.message


def test_an_engine_that_alone_meets_the_slo_is_rolled_out():
    found = decide(rate=110.0, replicas=12, levers=ENGINE_LEVERS, rollout_allowed=True)
    assert found.engine_change and found.feasible and "no other target meets the SLO" in found.message


def test_margins_widen_with_distrust():
    def cap(**changes):
        power = decide(rate=20.0, replicas=4, levers=replace(LEVERS, replicas=None), **changes).target.power_cap_watts
        return 700.0 if power is None else power

    base = cap()
    assert cap(margin=0.1) > base
    assert cap(trusted=False) > base
    assert cap(observation=observation(state=MetricsState.PARTIAL)) > base
    estimated = make_profile(provenance=Provenance.ESTIMATED)
    assert cap(profile=replace(estimated, relative_error=0.25)) > base


def test_the_margin_of_an_estimate_follows_its_error():
    """Narrower as a refit becomes confident, wider with a poor fit, up to twice."""

    def margin(provenance, error):
        profile = replace(make_profile(provenance=provenance), relative_error=error)
        return sizing.margin(replace(request(), profile=profile), SETTINGS) - SETTINGS.margin_base

    full = SETTINGS.margin_estimated_profile
    shares = {0.0: 0.0, 0.05: 0.2, 0.25: 1.0, 0.375: 1.5, 0.5: 2.0, 3.0: 2.0}
    for error, share in shares.items():
        assert margin(Provenance.ESTIMATED, error) == pytest.approx(share * full)
        assert margin(Provenance.FITTED, error) == 0.0


def test_very_bursty_arrivals_lower_the_ceiling():
    workload = replace(observation().workload, dispersion=Dispersion.flat(6.0))
    loose = replace(SLO, ttft=None)
    calm = decide(rate=56.0, levers=REPLICA_LEVERS, replicas=12, slo=loose)
    bursty = decide(
        rate=56.0, levers=REPLICA_LEVERS, replicas=12, slo=loose, observation=observation(workload=workload)
    )
    assert calm.target.replicas < bursty.target.replicas == 9
    assert bursty.binding is Binding.PLANNED_LOAD


def test_added_replicas_carry_their_start_up_energy():
    slow = decide(rate=20.0, replicas=3, startup_seconds=900.0)
    fast = decide(rate=20.0, replicas=3, startup_seconds=10.0)
    assert fast.target.replicas == 4 and slow.target.replicas == 3
    assert "for the move" in slow.runner_up.why_not


def test_one_energy_call_per_pass_for_the_whole_fleet():
    energy = FakeEnergy()
    fleet = [request(key=f"ns/{index}", rate=float(rate)) for index, rate in enumerate(range(5, 60, 5))]
    plans = plan(fleet, energy=energy, settings=SETTINGS, predict=predict)
    assert energy.calls == 2
    alone = [plan([item], energy=FakeEnergy(), settings=SETTINGS, predict=predict)[0] for item in fleet]
    assert plans == alone, "services do not touch each other"


def test_one_services_bad_data_leave_the_others_alone():
    def broken_check(profile, workload, candidates, **percentiles):
        if profile.model == "broken/sla":
            raise ValueError("no such percentile")
        return predict_one(profile, workload, candidates, **percentiles)

    class BrokenEnergy(FakeEnergy):
        def watts(self, queries):
            if any(query.profile.model == "broken/energy" for query in queries):
                raise ArithmeticError("no watts")
            answers = super().watts(queries)
            return [
                replace(answer, watts=answer.watts * np.nan) if query.profile.model == "broken/nan" else answer
                for query, answer in zip(queries, answers, strict=True)
            ]

    names = ["test/Model-8B", "broken/sla", "broken/energy", "broken/nan"]
    fleet = [request(cap=400.0, profile=make_profile(model=name), replicas=4) for name in names]
    good, *bad = plan(fleet, energy=BrokenEnergy(), settings=SETTINGS, predict=each(broken_check))
    assert good.reason is PlanReason.LEAST_ENERGY
    for found, word in zip(bad, ("percentile", "no watts", "finite"), strict=True):
        assert found.reason is PlanReason.FAILED and word in found.message
        assert (found.target.replicas, found.target.power_cap_watts) == (4, None)


def test_programming_errors_are_not_swallowed():
    def broken(*_, **__):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        plan([request()], energy=FakeEnergy(), settings=SETTINGS, predict=broken)


def test_an_empty_fleet():
    assert plan([], energy=FakeEnergy(), settings=SETTINGS, predict=predict) == []


def test_a_large_fleet_of_replicas_is_bisected():
    levers = replace(REPLICA_LEVERS, replicas=replace(REPLICA_LEVERS.replicas, maximum=500))
    calls = []

    def counting(queries):
        calls.extend(len(query.candidates) for query in queries)
        return predict(queries)

    found = decide(rate=2000.0, levers=levers, replicas=300, check=counting)
    step = decide(rate=2000.0, levers=levers, replicas=found.target.replicas, check=counting)
    assert found.target.replicas == step.target.replicas == 257 or found.target.replicas == step.target.replicas
    assert sum(calls) < 150


def test_the_target_keeps_engine_settings_that_are_no_levers():
    found = decide(rate=20.0, replicas=8)
    assert found.target.engine == request().current.engine and isinstance(found.target, Target)


def test_energy_of_the_plan_falls_until_nothing_moves():
    now = request(rate=40.0, replicas=12, levers=ENGINE_LEVERS, rollout_allowed=True)
    seen = []
    for _ in range(6):
        found = plan([now], energy=FakeEnergy(), settings=SETTINGS, predict=predict)[0]
        seen.append(found.target)
        now = applied(now, found)
    assert seen[-1] == seen[-2] == seen[-3]
