from wattkeeper.bench import policies


def test_every_policy_is_timed_both_ways():
    speeds = policies.measure(outputs=(20,), loads=(0.5,), requests=40, rounds=1)
    assert len(speeds) == len({speed.policy for speed in speeds}) == 11
    assert all(speed.ratio > 0.0 and speed.steps_per_request > 0.0 for speed in speeds)
    assert policies.table(speeds).row_count == 11
