from wattkeeper.bench import sla


def test_every_size_is_measured():
    costs = sla.measure(batches=(1, 20), fleets=(3,), rounds=1)
    assert [(cost.services, cost.candidates) for cost in costs] == [(1, 1), (1, 20), (3, 90)]
    assert all(cost.total_seconds > 0.0 and cost.learnt_seconds > 0.0 for cost in costs)
    assert sla.table(costs).row_count == 3


def test_the_stepper_is_timed_both_ways():
    speeds = sla.stepper_speed(requests=300, rounds=1)
    assert [speed.load for speed in speeds] == [0.1, 0.5, 0.9]
    assert all(speed.requests_per_second > 0.0 for speed in speeds)
    assert sla.speed_table(speeds).row_count == 3
