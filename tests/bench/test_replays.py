"""The benchmark of replays runs. No times are asserted."""

from wattkeeper.bench import replays


def test_costs_and_errors_are_told():
    costs = replays.measure(loads=(0.3,), caps=(None, 400.0), seeds=1)
    assert [(cost.bursty, cost.power_cap_watts) for cost in costs] == [
        (False, None),
        (False, 400.0),
        (True, None),
        (True, 400.0),
    ]
    for cost in costs:
        assert cost.requests > 4000 and cost.cpu_seconds > 0.0 and cost.answer_seconds > 0.0
        assert 0.0 <= cost.ttft_sampling_error < 1.0 and 0.0 <= cost.tpot_sampling_error < 1.0
    assert costs[1].tpot_seconds > costs[0].tpot_seconds
    assert replays.table(costs).row_count == 4
