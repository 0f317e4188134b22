"""The rule of evidence: every state of a small space against a literal reading of it, and how plans settle with it."""

import itertools
import math
from dataclasses import replace

import pytest

from tests.planner.fakes import (
    CLOCK_LEVERS,
    ENGINE_LEVERS,
    LEVERS,
    NOW,
    REPLICA_LEVERS,
    SLO,
    WORKLOAD,
    FakeEnergy,
    applied,
    make_profile,
    observation,
    predict,
    request,
)
from wattkeeper.domain.plan import Binding, PlanReason, RangeLever, ReplicaLever
from wattkeeper.domain.replay import Replayed, ReplayResult, ReplayStatus
from wattkeeper.physics import step
from wattkeeper.planner import evidence, sizing
from wattkeeper.planner.explain import explain
from wattkeeper.planner.plan import examine, plan
from wattkeeper.planner.sizing import Row
from wattkeeper.planner.types import PlannerSettings, ReplayEvidence

SETTINGS = PlannerSettings(margin_base=0.1)
GRID = evidence.grid_rate(20.0, SETTINGS.replay_rate_step_ratio)
GUARD = {"ttft_seconds": 0.9}


def result(share, *, bound=1.05, status=ReplayStatus.DONE, **changes):
    """Both latencies at a share of their targets; `bound` times that with sampling error."""
    values = {
        "ttft_seconds": share * SLO.ttft.seconds,
        "ttft_upper_seconds": share * bound * SLO.ttft.seconds,
        "tpot_seconds": share * SLO.tpot.seconds,
        "tpot_upper_seconds": share * bound * SLO.tpot.seconds,
        "attainment": 0.99,
        "requests": 5000,
    }
    return ReplayResult(status=status, **(values | changes))


MEETS, SHORT, MISSES = result(0.7), result(0.93), result(1.1)


def replayed(setting, found, *, rate=GRID, age=60.0, **changes):
    values = {
        "setting": setting,
        "requests_per_second": rate,
        "time_seconds": NOW - age,
        "prompt_tokens": WORKLOAD.prompt.mean,
        "output_tokens": WORKLOAD.output.mean,
        "prefix_hit_ratio": 0.0,
        "iteration_seconds": step.reference_seconds(make_profile().iteration),
        "result": found,
    }
    return Replayed(**(values | changes))


def decide(asked, *, settings=SETTINGS):
    return plan([asked], energy=FakeEnergy(), settings=settings, predict=predict)[0]


def setting(asked, replicas, cap=None, *, engine=0):
    case = sizing.make_case(asked, SETTINGS)
    return evidence.setting_of(case, Row(replicas, sizing.Power(cap_watts=cap), engine))


def limit(watts):
    return math.inf if watts is None else watts


def more(a, b):
    """True where setting `a` has at least the capacity of `b`."""
    return a.replicas >= b.replicas and limit(a.power_cap_watts) >= limit(b.power_cap_watts)


def test_without_a_replay_stage_nothing_changes():
    asked = request(replicas=6)
    found = decide(asked)
    assert found.target.replicas < 6 and found.wishes == ()
    assert found.check.replay == "" and found.check.replayed is None


@pytest.mark.parametrize("levers", [LEVERS, CLOCK_LEVERS, REPLICA_LEVERS, ENGINE_LEVERS])
def test_less_capacity_waits_for_a_replay_and_says_so(levers):
    asked = request(replicas=6, levers=levers, rollout_allowed=True, replays=ReplayEvidence())
    found = decide(asked)
    assert found.target == asked.current and not found.engine_change
    assert found.reason is PlanReason.AWAITING_REPLAY and found.binding is Binding.REPLAY
    assert "a replay is awaited" in found.message
    assert found.wishes and found.check.replay == "Awaited"
    slacks = [wish.slack for wish in found.wishes]
    assert slacks == sorted(slacks), "riskiest first"
    assert all(wish.requests_per_second >= 20.0 for wish in found.wishes)
    troubled = decide(replace(asked, replays=ReplayEvidence(trouble="the worker died")))
    assert "none comes: the worker died" in troubled.message


@pytest.mark.parametrize("levers", [LEVERS, CLOCK_LEVERS, REPLICA_LEVERS, ENGINE_LEVERS])
@pytest.mark.parametrize(("rate", "stabilised"), [(20.0, None), (20.0, 27.0), (0.0, None), (55.0, None)])
def test_once_every_wish_is_met_the_plan_settles_where_the_analytic_check_alone_would(levers, rate, stabilised):
    alone = request(rate=rate, stabilised=stabilised, replicas=8, levers=levers, rollout_allowed=True)
    checked = replace(alone, replays=ReplayEvidence())
    for _ in range(6):
        alone = applied(alone, decide(alone))
    for _ in range(15):
        found = decide(checked)
        known = tuple(replayed(wish.setting, MEETS, rate=wish.requests_per_second) for wish in found.wishes)
        checked = replace(applied(checked, found), replays=ReplayEvidence(replayed=checked.replays.replayed + known))
    assert checked.current == alone.current
    assert decide(checked).reason is not PlanReason.AWAITING_REPLAY
    assert "replay" not in decide(checked).message


def test_an_idle_service_says_what_it_waits_for():
    found = decide(request(rate=0.0, replicas=4, replays=ReplayEvidence()))
    assert found.reason is PlanReason.IDLE and found.target.replicas == 4
    assert found.binding is Binding.REPLAY and "a replay is awaited" in found.message and found.wishes


def test_more_capacity_never_waits():
    for rate, observed in ((55.0, {}), (20.0, GUARD), (500.0, {})):
        seen = observation(rate=rate, **observed)
        asked = request(rate=rate, replicas=3, cap=400.0, observation=seen)
        with_stage = decide(replace(asked, replays=ReplayEvidence()))
        assert with_stage.target.replicas == decide(asked).target.replicas >= 3
        assert with_stage.target.power_cap_watts is None


def test_a_replay_that_misses_wins_over_a_friendlier_analytic_answer():
    asked = request(replicas=4, levers=REPLICA_LEVERS)
    assert decide(asked).target.replicas == 3
    known = [replayed(setting(asked, count), MISSES) for count in (3, 4)]
    found = decide(replace(asked, replays=ReplayEvidence(replayed=tuple(known))))
    assert found.target.replicas == 5
    assert "in place, 5000 replayed requests at" in found.message and "TTFT p95 550 ms" in found.message
    told = explain(
        replace(asked, replays=ReplayEvidence(replayed=tuple(known))),
        energy=FakeEnergy(),
        settings=SETTINGS,
        predict=predict,
    )
    assert "replayed requests at" in told
    most = decide(replace(asked, replays=ReplayEvidence(replayed=(replayed(setting(asked, 12), MISSES),))))
    assert not most.feasible and most.target.replicas == 12 and most.binding is Binding.TTFT
    assert "replayed requests" in most.message


def test_what_is_in_place_may_be_short_of_its_margin_but_nothing_moves_there():
    asked = request(replicas=4, levers=REPLICA_LEVERS)
    known = (replayed(setting(asked, 3), SHORT), replayed(setting(asked, 4), SHORT))
    found = decide(replace(asked, replays=ReplayEvidence(replayed=known)))
    assert found.target.replicas == 4 and found.binding is Binding.REPLAY
    assert "which is not enough with 10% margin" in found.message
    assert found.reason is not PlanReason.AWAITING_REPLAY and found.check.replay == "Short"
    untrusted = decide(replace(asked, trusted=False, replays=ReplayEvidence(replayed=known)))
    assert untrusted.target.replicas > 4, "what the margin has beyond its base counts against it"


def test_an_invalid_replay_proves_nothing_and_is_not_asked_for_again():
    asked = request(replicas=4, levers=REPLICA_LEVERS)
    broken = ReplayResult(status=ReplayStatus.INVALID, message="KV capacity of nan tokens")
    known = (replayed(setting(asked, 3), broken), replayed(setting(asked, 4), broken))
    found = decide(replace(asked, replays=ReplayEvidence(replayed=known)))
    assert found.target.replicas == 4 and found.wishes == ()
    assert "its replay is no proof: KV capacity of nan tokens" in found.message


@pytest.mark.parametrize(
    "changes",
    [
        {"age": 601.0},
        {"prompt_tokens": 800.0},
        {"output_tokens": 250.0},
        {"prefix_hit_ratio": 0.5},
        {"iteration_seconds": 1.06 * step.reference_seconds(make_profile().iteration)},
        {"rate": 19.9},
    ],
)
def test_evidence_of_other_times_and_other_requests_does_not_count(changes):
    asked = request(replicas=4, levers=REPLICA_LEVERS)
    good = replace(asked, replays=ReplayEvidence(replayed=(replayed(setting(asked, 3), MEETS),)))
    assert decide(good).target.replicas == 3
    stale = replace(asked, replays=ReplayEvidence(replayed=(replayed(setting(asked, 3), MEETS, **changes),)))
    assert decide(stale).target.replicas == 4
    other = replace(MEETS, ttft_percentile=99.0)
    odd = replace(asked, replays=ReplayEvidence(replayed=(replayed(setting(asked, 3), other),)))
    assert decide(odd).target.replicas == 4


def test_fewer_replicas_need_a_replay_at_the_stabilised_rate_too():
    asked = request(replicas=5, stabilised=26.0, levers=LEVERS)
    case = sizing.make_case(asked, SETTINGS)
    known = replayed(setting(asked, 4, 400.0), MEETS)
    found = evidence.Evidence.of(sizing.make_case(replace(asked, replays=ReplayEvidence(replayed=(known,))), SETTINGS))
    row = Row(4, sizing.Power(cap_watts=400.0))
    assert found.judge(row).standing is evidence.Standing.UNKNOWN
    assert [need.row.power for need in found.unanswered(row)] == [case.space.full_power]
    held = replayed(setting(asked, 4), MEETS, rate=evidence.grid_rate(26.0, 0.03))
    both = ReplayEvidence(replayed=(known, held))
    again = evidence.Evidence.of(sizing.make_case(replace(asked, replays=both), SETTINGS))
    assert again.judge(row).standing is evidence.Standing.MEETS


def test_what_is_in_place_is_replayed_again_before_its_evidence_is_too_old():
    asked = request(replicas=3, levers=REPLICA_LEVERS)

    def wishes(age):
        known = ReplayEvidence(replayed=(replayed(setting(asked, 3), MEETS, age=age),))
        return [wish.setting.replicas for wish in decide(replace(asked, replays=known)).wishes]

    assert wishes(30.0) == []
    assert wishes(SETTINGS.replay_refresh_seconds + 1.0) == [3]


def test_the_grid_of_rates_rounds_up_and_keeps_its_own_points():
    for rate in (0.02, 0.5, 7.77, 20.0, 1234.5):
        up = evidence.grid_rate(rate, 0.03)
        assert rate <= up * (1 + 1e-9) and up <= rate * 1.03 * (1 + 1e-9)
        assert evidence.grid_rate(up, 0.03) == pytest.approx(up)


KINDS = {"meets": MEETS, "short": SHORT, "misses": MISSES, "too few": replace(MEETS, status=ReplayStatus.TOO_FEW)}
SMALL = replace(
    LEVERS,
    replicas=ReplicaLever(minimum=1, maximum=5),
    power_cap=RangeLever(minimum=400, maximum=700, step=150),
)
STEP = 1.0 + SETTINGS.replay_rate_step_ratio


def test_every_state_of_a_small_space_against_a_literal_reading_of_the_rule():
    """In place x evidence of one or two replays: which targets may be chosen."""
    places = list(itertools.product((2, 3, 4), (None, 550.0)))
    rates = (GRID / STEP, GRID, GRID * STEP)
    single = list(itertools.product((2, 3, 4), (None, 550.0, 400.0), rates, KINDS, (60.0, 601.0)))
    fresh = [item for item in single if item[4] == 60.0 and item[2] == GRID]
    pairs = [pair for index, pair in enumerate(itertools.combinations(fresh, 2)) if index % 5 == 0]
    sets = [(), *((item,) for item in single), *pairs]
    asked, expected = [], []
    for (replicas, cap), known in itertools.product(places, sets):
        base = request(replicas=replicas, cap=cap, levers=SMALL)
        items = tuple(
            replayed(setting(base, count, watts), KINDS[kind], rate=rate, age=age)
            for count, watts, rate, kind, age in known
        )
        asked.append(replace(base, replays=ReplayEvidence(replayed=items)))
        expected.append([item for item in items if NOW - item.time_seconds <= SETTINGS.replay_max_age_seconds])
    moved = 0
    for one, valid, found in zip(
        asked, expected, examine(asked, energy=FakeEnergy(), settings=SETTINGS, predict=predict), strict=True
    ):
        target = setting(one, found.plan.target.replicas, found.plan.target.power_cap_watts)
        now = setting(one, one.current.replicas, one.current.power_cap_watts)
        against = [
            item
            for item in valid
            if item.result is MISSES and item.requests_per_second <= GRID * 1.001 and more(item.setting, target)
        ]
        assert not against or not found.plan.feasible, "a replay says that the target misses"
        if not more(target, now):
            moved += 1
            proof = [
                item
                for item in valid
                if item.result is MEETS and item.requests_per_second >= 20.0 and more(target, item.setting)
            ]
            assert proof, "less capacity without evidence"
            doubt = [
                item
                for item in valid
                if item.result is not MEETS and item.requests_per_second <= GRID * 1.001 and more(item.setting, target)
            ]
            assert not doubt, "less capacity although a replay of as much is short"
            assert found.plan.check.replay == "Meets" and found.plan.check.replayed in proof
        if found.plan.reason is PlanReason.AWAITING_REPLAY:
            assert found.plan.wishes and more(target, now)
    assert moved > 100


def test_a_replay_lifts_the_ceiling_by_a_step_and_no_further():
    """Four replicas at 20 req/s carry half of their capacity; three at 27 req/s were shown to meet the SLO."""
    settings = replace(SETTINGS, planned_load_ceiling=0.6)
    asked = request(replicas=4, levers=REPLICA_LEVERS)

    def ceiling(*known):
        stage = ReplayEvidence(replayed=known)
        found = examine([replace(asked, replays=stage)], energy=FakeEnergy(), settings=settings, predict=predict)[0]
        return found.search.case.ceiling

    assert ceiling() == 0.6
    assert ceiling(replayed(setting(asked, 3), MISSES, rate=27.0)) == 0.6
    assert ceiling(replayed(setting(asked, 4), MEETS, rate=16.0)) == 0.6
    assert ceiling(replayed(setting(asked, 4), MEETS, rate=27.0)) == pytest.approx(27.0 / 40.0 * 1.05)
    assert ceiling(replayed(setting(asked, 4), MEETS, rate=38.0)) == settings.planned_load_ceiling_proved
