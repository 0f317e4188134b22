"""The number of queries does not depend on the fleet, and what they answer is read. No times are asserted."""

from wattkeeper.bench import queries
from wattkeeper.telemetry import promql


def test_queries_do_not_grow_with_services():
    one = queries.measure(services=1, pods_per_service=6, collections=1)
    many = queries.measure(services=3, pods_per_service=2, collections=1)
    settings = promql.QuerySettings()
    everything = len(promql.engine_queries(settings)) + len(promql.gpu_queries(settings))
    assert one.queries == many.queries == everything == 26
    assert one.queries_between == many.queries_between < one.queries
    assert one.pods_read == many.pods_read == one.pods == many.pods == 6
    assert one.answer_bytes > 0 and one.cpu_seconds > 0 and one.cpu_share > 0
    assert queries.table([one, many]).row_count == 2
