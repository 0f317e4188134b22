"""Which replica each router picks."""

import pytest

from tests.twin.test_replica import small_hardware
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request
from wattkeeper.twin.routers import LeastKv, LeastOutstanding, PrefixAware, RoundRobin


def replicas(count=3):
    return [Replica(small_hardware(blocks=300, sequences=32, batched=512), now=0.0) for _ in range(count)]


def sent(found):
    return [replica.outstanding for replica in found]


def test_round_robin_goes_on_where_it_stopped():
    router, found = RoundRobin(), replicas()
    router.route([Request(0.0, 5, 5)] * 4, found)
    router.route([Request(0.0, 5, 5)], found)
    assert sent(found) == [2, 2, 1]


def test_least_outstanding_evens_out():
    router, found = LeastOutstanding(), replicas()
    found[0].submit([Request(0.0, 5, 5)] * 3)
    router.route([Request(0.0, 5, 5)] * 4, found)
    assert sent(found) == [3, 2, 2]


def test_least_kv_counts_prompts_not_requests():
    router, found = LeastKv(), replicas(2)
    router.route([Request(0.0, 450, 5), Request(0.0, 100, 5), Request(0.0, 100, 5), Request(0.0, 100, 5)], found)
    assert sorted(sent(found)) == [1, 3]


def test_prefixes_go_where_they_are_until_that_one_is_overloaded():
    router, found = PrefixAware(block_tokens=10, overload=2), replicas(2)
    first = Request(0.0, 40, 5, blocks=(1, 2, 3))
    router.route([first], found)
    home = next(replica for replica in found if replica.outstanding)
    again = [Request(0.0, 40, 5, blocks=(1, 2, 3, 4 + number)) for number in range(4)]
    router.route(again, found)
    assert [request.cached for request in (first, *again[:2])] == [0, 30, 30]
    assert home.outstanding == 3, "two more than the other, then the other"
    stranger = Request(0.0, 40, 5, blocks=(9, 2, 3))
    router.route([stranger], found)
    assert stranger.cached == 0, "a prefix counts from the beginning"


def test_what_a_replica_cannot_hold_is_forgotten():
    router, found = PrefixAware(block_tokens=512), replicas(1)
    many = [Request(0.0, 600, 1, blocks=(number,)) for number in range(12)]
    router.route(many, found)
    oldest = Request(0.0, 600, 1, blocks=(0,))
    router.route([oldest], found)
    assert oldest.cached == 0
    with pytest.raises(ValueError, match="block_tokens"):
        PrefixAware(block_tokens=0)
