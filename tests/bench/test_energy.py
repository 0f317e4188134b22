from wattkeeper.bench import energy


def test_every_size_is_measured():
    found = energy.measure(sizes=((1, 5), (3, 4)), rounds=1)
    assert [(cost.services, cost.candidates) for cost in found.costs] == [(1, 5), (3, 4)]
    assert all(cost.model_seconds > 0.0 and cost.physics_seconds > 0.0 for cost in found.costs)
    assert 0 < found.file_bytes < 5_000_000
    assert energy.table(found).row_count == 2
