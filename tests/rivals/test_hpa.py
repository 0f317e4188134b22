"""The autoscaler's arithmetic and pace, worked out by hand from its documentation."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rivals.looks import look, reading, waiting
from wattkeeper.rivals.hpa import HorizontalPodAutoscaler, kv_usage_metric, waiting_metric
from wattkeeper.rivals.hpa_behavior import DOWN, UP, Behavior, Pace, ScalingPolicy, ScalingRules, Select, Unit
from wattkeeper.rivals.hpa_metrics import ExternalMetric, PodsMetric
from wattkeeper.rivals.settings import PolicySettingsError

AT_ONCE = Behavior(down=replace(DOWN, window_seconds=0.0))


def hpa(*metrics: PodsMetric | ExternalMetric, behavior: Behavior = AT_ONCE, low: int = 1, high: int = 50):
    return HorizontalPodAutoscaler(
        name="hpa", metrics=metrics or (waiting_metric(5.0),), min_replicas=low, max_replicas=high, behavior=behavior
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((10, 10), 4),  # ratio 2: doubled
        ((5, 6), 2),  # 1.1 is within the tolerance
        ((5, 6.02), 3),  # 1.102 is not
        ((4.6, 4.6), 2),  # 0.92
        ((2.5, 2.5, 2.5, 2.5), 2),  # 0.5: halved
        ((2, 2, 2), 2),  # ceil(0.4 x 3)
        ((7, 8, 10), 5),  # 25 requests at 5 each, no pod more for a rounding error
        ((0, 0, 0), 1),  # nothing waits: down to the bound
    ],
)
def test_ratio_and_tolerance(values, expected):
    assert hpa().decide(look(0.0, waiting(*values), ready=len(values))).replicas == expected


def test_missing_pods_are_idle_on_the_way_up():
    # 20 and 20 at 5: ratio 4. With two missing pods as idle: mean 10, ratio 2, 2 x 4 = 8.
    assert hpa().decide(look(0.0, waiting(20, 20, None, None), ready=4)).replicas == 8


def test_missing_pods_are_on_target_on_the_way_down():
    # 1 and 1 at 5: ratio 0.2. With two missing pods on target: mean 3, ratio 0.6, ceil(0.6 x 4) = 3.
    assert hpa().decide(look(0.0, waiting(1, 1, None, None), ready=4)).replicas == 3


def test_missing_pods_never_turn_the_direction():
    # 8 at 5: ratio 1.6. With one idle pod: mean 4, ratio 0.8: the direction would turn, so nothing happens.
    assert hpa().decide(look(0.0, waiting(8, None), ready=2)).replicas == 2


def test_starting_pods_dampen_a_scale_up():
    # Doubled at the first sync; while the new pods load, the same queue must not double the fleet again.
    policy = hpa()
    first = policy.decide(look(0.0, waiting(10, 10), ready=2))
    assert first.replicas == 4
    assert policy.decide(look(15.0, waiting(10, 10), ready=2, starting=2)).replicas == 4


def test_draining_pods_do_not_count():
    readings = [*waiting(10, 10), reading(2, waiting=100)]
    assert hpa().decide(look(0.0, readings, ready=2, draining=1)).replicas == 4


def test_without_any_metric_nothing_changes():
    assert hpa().decide(look(0.0, None, ready=3)).replicas is None
    decision = hpa().decide(look(0.0, waiting(None, None, None), ready=3))
    assert decision.replicas is None
    assert "vllm:num_requests_waiting" in decision.reason


def test_a_snapshot_that_nothing_follows_goes_stale():
    policy = hpa()
    assert policy.decide(look(0.0, waiting(10, 10), ready=2)).replicas == 4
    assert policy.decide(look(15.0, waiting(10, 10), ready=2, collected_seconds=0.0)).replicas == 4
    assert policy.decide(look(45.0, waiting(10, 10), ready=2, collected_seconds=0.0)).replicas is None


def test_old_readings_of_one_pod_are_missing():
    readings = [reading(0, waiting=10), reading(1, waiting=10, age_seconds=31.0)]
    # ratio 2; the other pod as idle: mean 5, ratio 1.
    assert hpa().decide(look(0.0, readings, ready=2)).replicas == 2


def test_the_largest_of_several_metrics_wins_and_an_unknown_one_forbids_going_down():
    both = (waiting_metric(5.0), kv_usage_metric(0.5))
    full = [reading(0, waiting=0, kv_usage=0.9), reading(1, waiting=0, kv_usage=0.9)]
    assert hpa(*both).decide(look(0.0, full, ready=2)).replicas == 4  # ceil(1.8 x 2)
    half = [reading(0, waiting=0), reading(1, waiting=0)]
    assert hpa(*both).decide(look(0.0, half, ready=2)).replicas is None
    busy = [reading(0, waiting=10), reading(1, waiting=10)]
    assert hpa(*both).decide(look(0.0, busy, ready=2)).replicas == 4


def test_bounds():
    assert hpa(high=3).decide(look(0.0, waiting(50, 50), ready=2)).replicas == 3
    assert hpa(low=2).decide(look(0.0, waiting(0, 0, 0), ready=3)).replicas == 2
    assert hpa(high=3).decide(look(0.0, None, ready=5)).replicas == 3
    assert hpa(low=2).decide(look(0.0, None, ready=1)).replicas == 2
    assert hpa().decide(look(0.0, waiting(), ready=0, desired=0)).replicas is None


def test_default_scale_up_is_the_larger_of_doubling_and_four_pods_in_15_seconds():
    policy = hpa()
    assert policy.decide(look(0.0, waiting(500), ready=1)).replicas == 5  # 1 + 4 > 2 x 1
    assert policy.decide(look(15.0, waiting(*[500] * 5), ready=5)).replicas == 10  # 2 x 5 > 5 + 4
    assert policy.decide(look(20.0, waiting(*[500] * 10), ready=10)).replicas == 10  # the period is not over
    assert policy.decide(look(30.0, waiting(*[500] * 10), ready=10)).replicas == 20


def test_default_scale_down_takes_the_highest_recommendation_of_five_minutes():
    policy = hpa(behavior=Behavior())
    busy, idle = waiting(*[5.0] * 4), waiting(*[0.0] * 4)
    assert policy.decide(look(0.0, busy, ready=4)).replicas == 4
    for time in range(15, 300, 15):
        assert policy.decide(look(float(time), idle, ready=4)).replicas == 4
    # At 300 s the recommendation of the first sync is no longer inside the window.
    assert policy.decide(look(300.0, idle, ready=4)).replicas == 1


def test_a_new_autoscaler_does_not_scale_down_at_once():
    assert hpa(behavior=Behavior()).decide(look(0.0, waiting(0, 0, 0), ready=3)).replicas == 3


def test_an_up_window_takes_the_lowest_recommendation():
    pace = Pace(Behavior(up=replace(UP, window_seconds=60.0)))
    assert pace.stabilise(0.0, current=2, wanted=6) == 2
    assert pace.stabilise(30.0, current=2, wanted=4) == 2
    assert pace.stabilise(75.0, current=2, wanted=9) == 4


def test_select_min_and_disabled():
    ten_percent = ScalingPolicy(unit=Unit.PERCENT, value=10, period_seconds=60.0)
    two_pods = ScalingPolicy(unit=Unit.PODS, value=2, period_seconds=60.0)
    rules = {
        select: ScalingRules(window_seconds=0.0, policies=(ten_percent, two_pods), select=select) for select in Select
    }

    def down(select: Select) -> int:
        pace = Pace(Behavior(down=rules[select]))
        return pace.limit(0.0, current=45, wanted=1, minimum=1, maximum=99)

    # 45 x 0.9 = 40.5, cut to 40; 45 - 2 = 43.
    assert down(Select.MAX) == 40
    assert down(Select.MIN) == 43
    assert down(Select.DISABLED) == 45
    pace = Pace(Behavior(up=rules[Select.MAX]))
    assert pace.limit(0.0, current=45, wanted=99, minimum=1, maximum=99) == 50  # ceil(49.5)


def test_changes_inside_the_period_count_against_the_limit():
    rules = ScalingRules(window_seconds=0.0, policies=(ScalingPolicy(unit=Unit.PODS, value=4, period_seconds=60.0),))
    pace = Pace(Behavior(up=rules, down=rules))
    assert pace.limit(0.0, current=10, wanted=20, minimum=1, maximum=99) == 14
    pace.changed(0.0, before=10, after=14)
    assert pace.limit(30.0, current=14, wanted=20, minimum=1, maximum=99) == 14
    assert pace.limit(60.0, current=14, wanted=20, minimum=1, maximum=99) == 18
    # The period began with 10: of these 4 may go, so 6 may be left.
    assert pace.limit(30.0, current=14, wanted=1, minimum=1, maximum=99) == 6


def test_bad_parameters_are_refused():
    with pytest.raises(PolicySettingsError, match=r"target of vllm:num_requests_waiting must be above 0"):
        waiting_metric(0.0)
    with pytest.raises(PolicySettingsError, match=r"share in 0\.\.1"):
        kv_usage_metric(50.0)
    with pytest.raises(PolicySettingsError, match="max_replicas must be at least 4"):
        hpa(low=4, high=3)
    with pytest.raises(PolicySettingsError, match="at least one metric"):
        HorizontalPodAutoscaler(name="x", metrics=(), min_replicas=1, max_replicas=2)
    with pytest.raises(PolicySettingsError, match="period up to 1800"):
        ScalingPolicy(unit=Unit.PODS, value=1, period_seconds=3600.0)
    with pytest.raises(PolicySettingsError, match=r"window must lie in 0\.\.3600"):
        replace(DOWN, window_seconds=7200.0)
    with pytest.raises(PolicySettingsError, match="Disabled"):
        ScalingRules(window_seconds=0.0, policies=())


READING = st.one_of(st.none(), st.floats(0.0, 500.0))


@given(
    syncs=st.lists(st.tuples(st.lists(READING, min_size=1, max_size=12), st.integers(0, 6)), min_size=1, max_size=30),
    low=st.integers(1, 3),
    high=st.integers(3, 20),
)
def test_never_beyond_bounds_nor_faster_than_the_policies_allow(syncs, low, high):
    policy = hpa(behavior=Behavior(), low=low, high=high)
    replicas, trail = low, [low]
    for index, (values, starting) in enumerate(syncs):
        ready = max(1, replicas - starting)
        view = look(15.0 * index, waiting(*values), ready=ready, starting=replicas - ready)
        replicas = policy.decide(view).replicas or replicas
        assert low <= replicas <= high
        assert replicas <= max(2 * trail[-1], trail[-1] + 4)
        trail.append(replicas)
        if index < 20:
            # The window of five minutes still holds every recommendation: nothing goes yet.
            assert trail[-1] >= trail[-2]
