import pytest

from tests.rivals.looks import look, reading
from wattkeeper.rivals.keda import Fallback, ScaledObject
from wattkeeper.rivals.settings import PolicySettingsError


def busy(*in_flight: tuple[float | None, float | None]):
    return [reading(index, running=running, waiting=queue) for index, (running, queue) in enumerate(in_flight)]


def keda(**changes):
    return ScaledObject(**{"name": "keda", "threshold": 2.0, "min_replicas": 1, "max_replicas": 50, **changes})


def test_six_requests_at_two_per_pod_are_three_pods():
    # The example of KServe's page.
    assert keda().decide(look(0.0, busy((4, 2)), ready=1)).replicas == 3


def test_the_average_is_over_all_pods_that_are_not_going_away():
    # 8 requests, 2 ready pods and 2 that start: 2 per pod, on target.
    assert keda().decide(look(0.0, busy((4, 0), (4, 0)), ready=2, starting=2)).replicas == 4
    # A pod that drains still reports its requests, but is no pod to divide by: ceil(10 / 2).
    assert keda().decide(look(0.0, busy((4, 0), (4, 0), (2, 0)), ready=2, draining=1)).replicas == 5


def test_within_tolerance_the_pods_that_there_are_stay():
    # 21 / (2 x 10) = 1.05
    assert keda().decide(look(0.0, busy(*[(2.1, 0)] * 10), ready=10)).replicas == 10


def test_no_series_count_as_zero_by_default():
    policy = keda()
    silent = busy((None, None), (None, None))
    assert policy.decide(look(0.0, silent, ready=2)).replicas == 2
    assert policy.decide(look(300.0, silent, ready=2)).replicas == 1
    assert keda(ignore_null_values=False).decide(look(0.0, silent, ready=2)).replicas is None


def test_a_source_that_does_not_answer_keeps_the_replicas():
    policy = keda()
    for time in range(0, 900, 15):
        assert policy.decide(look(float(time), None, ready=2)).replicas is None


def test_fallback_after_more_errors_than_its_threshold():
    policy = keda(fallback=Fallback(failure_threshold=3, replicas=6))
    found = [policy.decide(look(15.0 * sync, None, ready=2)).replicas for sync in range(4)]
    assert found == [None, None, None, 6]
    # One answer starts the count again.
    policy.decide(look(60.0, busy((2, 0), (2, 0)), ready=2))
    assert policy.decide(look(400.0, busy((2, 0)), ready=2, collected_seconds=60.0)).replicas is None


def test_caching_keeps_a_value_for_the_polling_interval():
    cached, fresh = keda(use_cached_metrics=True), keda()
    for policy in (cached, fresh):
        assert policy.decide(look(0.0, busy((2, 0)), ready=1)).replicas == 1
    later = look(15.0, busy((6, 0)), ready=1)
    assert cached.decide(later).replicas == 1
    assert fresh.decide(later).replicas == 3
    assert cached.decide(look(30.0, busy((6, 0)), ready=1)).replicas == 3


def test_bad_parameters_are_refused():
    with pytest.raises(PolicySettingsError, match="threshold must be above 0"):
        keda(threshold=-1.0)
    with pytest.raises(PolicySettingsError, match="min_replicas must be at least 1"):
        keda(min_replicas=0)
    with pytest.raises(PolicySettingsError, match="failure_threshold"):
        Fallback(failure_threshold=-1, replicas=3)
