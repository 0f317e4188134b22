import sys

from wattkeeper.bench import sla


def test_every_size_is_measured():
    costs = sla.measure(batches=(1, 20), fleets=(3,), rounds=1)
    assert [(cost.services, cost.candidates) for cost in costs] == [(1, 1), (1, 20), (3, 90)]
    assert all(cost.total_seconds > 0.0 and cost.learnt_seconds > 0.0 for cost in costs)
    assert all(cost.lightgbm_seconds for cost in costs)
    assert sla.table(costs).row_count == 3


def test_without_lightgbm_there_is_nothing_to_compare(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    (cost,) = sla.measure(batches=(1,), fleets=(), rounds=1)
    assert cost.learnt_seconds > 0.0 and cost.lightgbm_seconds is None
    assert list(sla.table([cost]).columns[4].cells) == ["missing"]


def test_the_stepper_is_timed_both_ways():
    speeds = sla.stepper_speed(requests=300, rounds=1)
    assert [speed.load for speed in speeds] == [0.1, 0.5, 0.9]
    assert all(speed.requests_per_second > 0.0 for speed in speeds)
    assert sla.speed_table(speeds).row_count == 3
