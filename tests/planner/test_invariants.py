"""What must hold of every plan: random requests, and every state of a small space."""

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planner.fakes import (
    CLOCK_LEVERS,
    ENGINE_LEVERS,
    LEVERS,
    NOW,
    REPLICA_LEVERS,
    FakeEnergy,
    applied,
    observation,
    predict,
    request,
)
from wattkeeper.domain.observation import MetricsState
from wattkeeper.domain.plan import PlanReason, RangeLever, ReplicaLever
from wattkeeper.planner import sizing
from wattkeeper.planner.plan import plan
from wattkeeper.planner.types import PlanMemory, PlannerSettings

SETTINGS = PlannerSettings(margin_base=0.1)
GUARDS = {PlanReason.GUARD_SLO, PlanReason.GUARD_QUEUE, PlanReason.GUARD_PREEMPTION}
BOTH_LEVERS = replace(LEVERS, clock_lock=RangeLever(minimum=900, maximum=1800, step=150))


def decide(*requests):
    return plan(list(requests), energy=FakeEnergy(), settings=SETTINGS, predict=predict)


def ago(seconds):
    return st.one_of(st.none(), seconds.map(lambda value: NOW - value))


@st.composite
def requests(draw, *, states=tuple(MetricsState)):
    rate = draw(st.one_of(st.just(0.0), st.floats(0.01, 150)))
    replicas = draw(st.integers(1, 15))
    low = draw(st.integers(1, 6))
    levers = draw(st.sampled_from([LEVERS, CLOCK_LEVERS, REPLICA_LEVERS, ENGINE_LEVERS, BOTH_LEVERS]))
    levers = replace(levers, replicas=ReplicaLever(minimum=low, maximum=draw(st.integers(low, 14))))
    seconds = st.floats(0, 600)
    seen = observation(
        rate=rate,
        state=draw(st.sampled_from(states)),
        age_seconds=draw(st.one_of(st.none(), st.floats(0, 200))),
        running=draw(st.sampled_from([0.0, rate])),
        waiting=draw(st.sampled_from([0.0, 0.0, 0.0, 200.0])),
        ttft_seconds=draw(st.sampled_from([None, 0.2, 0.2, 0.9])),
        preemptions_per_second=draw(st.sampled_from([None, 0.0, 0.0, 5.0])),
    )
    return request(
        rate=rate,
        planned_rate_stabilised=draw(st.one_of(st.none(), st.floats(1, 3).map(lambda factor: rate * factor))),
        replicas=replicas,
        ready_replicas=draw(st.integers(0, replicas)),
        cap=draw(st.sampled_from([None, 300.0, 437.0, 600.0, 700.0])) if levers.power_cap else None,
        clock=draw(st.sampled_from([None, 1011.0, 1500.0])) if levers.clock_lock else None,
        levers=levers,
        observation=seen,
        memory=PlanMemory(
            last_scale_down_seconds=draw(ago(seconds)),
            last_scale_up_seconds=draw(ago(seconds)),
            last_rollout_seconds=draw(ago(st.floats(0, 4000))),
            last_cap_seconds=draw(ago(seconds)),
            last_guard_seconds=draw(ago(seconds)),
        ),
        power_lever=draw(st.booleans()),
        rollout_allowed=draw(st.booleans()),
        trusted=draw(st.booleans()),
        margin=draw(st.floats(0, 0.5)),
        free_gpus=draw(st.one_of(st.none(), st.integers(0, 8))),
    )


def bounded(asked):
    """Replicas in place, moved into the user's bounds."""
    lever = asked.levers.replicas
    return min(max(asked.current.replicas, lever.minimum), lever.maximum)


def power(target):
    cap = float("inf") if target.power_cap_watts is None else target.power_cap_watts
    clock = float("inf") if target.clock_mhz is None else target.clock_mhz
    return cap, clock


def check(asked, found):
    """All that every plan owes."""
    levers, target = asked.levers, found.target
    assert levers.replicas.minimum <= target.replicas <= levers.replicas.maximum
    if asked.free_gpus is not None:
        assert target.replicas <= max(levers.replicas.minimum, asked.current.replicas + asked.free_gpus)
    for value, lever in ((target.power_cap_watts, levers.power_cap), (target.clock_mhz, levers.clock_lock)):
        assert value is None or (lever is not None and asked.power_lever and lever.minimum <= value <= lever.maximum)
    if not asked.observation.state.usable:
        assert target.replicas >= bounded(asked) and not found.engine_change
    if found.reason in GUARDS:
        assert target.replicas >= bounded(asked)
        assert target.clock_mhz == (
            1800.0 if levers.clock_lock == BOTH_LEVERS.clock_lock and asked.power_lever else None
        )
        assert target.power_cap_watts is None
    if asked.planned_rate_stabilised is None:
        assert target.replicas >= bounded(asked)
    if found.engine_change:
        assert asked.rollout_allowed and asked.ready_replicas >= asked.current.replicas
        assert target.replicas >= bounded(asked), "one disruptive action per plan"
        assert target.engine == asked.current.engine.with_change(found.engine_change)
    else:
        assert target.engine == asked.current.engine
    assert found.message.endswith(".") and "nan" not in found.message
    assert found.reason is not PlanReason.FAILED


@settings(max_examples=300, deadline=None)
@given(requests())
def test_every_plan_keeps_its_promises(asked):
    check(asked, decide(asked)[0])


@settings(max_examples=200, deadline=None)
@given(requests(states=(MetricsState.FRESH, MetricsState.PARTIAL)))
def test_replicas_stay_enough_where_enough_exist(asked):
    found = decide(asked)[0]
    if found.reason in GUARDS or not found.feasible or asked.current.engine != found.target.engine:
        return
    case = sizing.make_case(asked, SETTINGS)
    ledger = sizing.Ledger(case, predict=predict)
    row = sizing.full_power_row(case, found.target.replicas)
    ledger.add([row])
    assert ledger.feasible(row)
    held = sizing.full_power_row(case, found.target.replicas, load=case.stabilised_load)
    ledger.add([held])
    assert ledger.feasible(held) or found.target.replicas >= bounded(asked), "fewer carry the stabilised rate"
    serving = min(found.target.replicas, asked.ready_replicas)
    limits = sizing.Power(cap_watts=found.target.power_cap_watts, clock_mhz=found.target.clock_mhz)
    if limits != case.space.full_power:
        now = sizing.Row(replicas=serving, power=limits)
        ledger.add([now])
        assert serving > 0 and ledger.feasible(now), "limits fit the replicas that serve"


@settings(max_examples=200, deadline=None)
@given(requests(), st.booleans())
def test_a_plan_once_applied_is_found_again(asked, ready):
    first = decide(asked)[0]
    if first.engine_change:
        return  # settles in stages: the engine first, fewer replicas after it
    second = decide(applied(asked, first, ready=ready))[0]
    if first.reason not in GUARDS and (ready and asked.ready_replicas < asked.current.replicas):
        second = decide(applied(applied(asked, first), second))[0]
        third = decide(applied(applied(asked, first), second))[0]
        assert third.target == second.target
    elif first.reason not in GUARDS:
        assert second.target == first.target
    else:
        assert second.target.replicas >= first.target.replicas


@settings(max_examples=150, deadline=None)
@given(st.floats(0.1, 150), st.floats(1, 3), st.integers(1, 12), st.booleans())
def test_more_load_never_gets_fewer_replicas(rate, factor, replicas, trusted):
    unseen = {"ttft_seconds": None, "tpot_seconds": None}
    less, more = (
        request(
            rate=each,
            replicas=replicas,
            levers=REPLICA_LEVERS,
            trusted=trusted,
            observation=observation(rate=each, **unseen),
        )
        for each in (rate, rate * factor)
    )
    low, high = decide(less, more)
    assert low.target.replicas <= high.target.replicas


def test_every_state_of_a_small_space():
    """All of: replicas, ready ones, cap, rate, recent rate, metrics, observed latency, timers, roll-outs."""
    levers = replace(ENGINE_LEVERS, replicas=ReplicaLever(minimum=1, maximum=4))
    timers = [
        PlanMemory(),
        PlanMemory(last_scale_up_seconds=NOW - 30, last_cap_seconds=NOW - 5),
        PlanMemory(last_guard_seconds=NOW - 30),
        PlanMemory(last_rollout_seconds=NOW - 60, last_scale_down_seconds=NOW - 30),
    ]
    seen = [
        (MetricsState.FRESH, 5.0),
        (MetricsState.PARTIAL, 5.0),
        (MetricsState.STALE, 50.0),
        (MetricsState.UNREACHABLE, 90.0),
        (MetricsState.ABSENT, None),
    ]
    asked = [
        request(
            rate=rate,
            stabilised=rate * recent,
            replicas=replicas,
            ready_replicas=max(0, replicas - starting),
            cap=cap,
            levers=levers,
            memory=memory,
            rollout_allowed=rollout,
            observation=observation(rate=rate, running=rate, state=state, age_seconds=age, ttft_seconds=ttft),
        )
        for replicas, starting, cap, rate, recent, (state, age), ttft, memory, rollout in itertools.product(
            (1, 2, 4), (0, 1), (None, 350.0, 525.0), (0.0, 6.0, 18.0, 60.0), (1.0, 2.0), seen, (0.2, 0.9), timers,
            (False, True),
        )
    ]  # fmt: skip
    plans = decide(*asked)
    for each, found in zip(asked, plans, strict=True):
        check(each, found)
        limit = power(each.current)
        if not each.observation.state.usable:
            assert power(found.target) >= limit, "without metrics power only rises"
        held = each.memory.last_guard_seconds is not None or each.memory.last_cap_seconds is not None
        if held and not found.engine_change:
            assert power(found.target) >= limit, "timers hold power"
        if each.memory != timers[0] and each.memory.last_rollout_seconds is None and not found.engine_change:
            assert found.target.replicas >= each.current.replicas, "timers hold replicas"
        if found.reason is PlanReason.INFEASIBLE:
            assert found.target.replicas == 4 and found.target.power_cap_watts is None
