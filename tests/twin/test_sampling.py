"""Sampled fleets: weights add up to what arrived, figures agree with the exact mode, pods come and go."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.test_deployment import SMALL, deployed
from tests.twin.test_fleet import CARD, LENGTHS
from tests.twin.test_replica import small_hardware
from wattkeeper.traces import generate
from wattkeeper.traces.trace import RateSeries
from wattkeeper.twin.arrivals import ArrivalQueue
from wattkeeper.twin.deployment import Deployment, Lifecycle, PodPhase, draw_failures
from wattkeeper.twin.fleet import Fleet, Service
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request
from wattkeeper.twin.routers import ROUTERS
from wattkeeper.twin.sampling import split


def trace(rate=20.0, seconds=120.0, seed=0):
    series = RateSeries(times_seconds=(0.0, seconds), requests_per_second=(rate, rate))
    return generate.generate(series, prompt=LENGTHS, output=LENGTHS, seed=seed)


def chat(simulated, *, replicas=6, rate=20.0, seconds=120.0, router="least-outstanding", failures=(), seed=0):
    inventory = Inventory()
    for index in range(4):
        inventory.ensure(f"node-{index}", CARD, 4)
    fleet = Fleet(inventory)
    fleet.services["chat"] = Service(
        name="chat",
        slo=SloTargets(ttft_seconds=0.5, tpot_seconds=0.05),
        arrivals=trace(rate, seconds, seed),
        router=ROUTERS[router](),
        simulated_replicas=simulated,
    )
    lifecycle = Lifecycle(startup_seconds=20.0, grace_seconds=2.0)
    return Deployment(
        fleet, name="chat", namespace="ml", hardware=SMALL, replicas=replicas, lifecycle=lifecycle, failures=failures
    )


def accounted(deployment):
    service = deployment.service
    inside = sum(request.weight for replica in service.played() for request in replica.unfinished())
    ledger = service.ledger
    assert ledger.arrived == ledger.finished + ledger.lost + inside + service.thinning.held
    assert len(ledger.samples()[0]) == ledger.finished
    return ledger


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 9), st.floats(1.0, 50.0), st.booleans(), st.booleans()), min_size=1, max_size=8
    ),
    router=st.sampled_from(["least-outstanding", "round-robin", "least-kv"]),
    simulated=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_weights_add_up_whatever_happens(steps, router, simulated, seed):
    failures = draw_failures(per_day=2000.0, span_seconds=400.0, seed=seed, node_share=0.3)
    fleet = chat(simulated, rate=30.0, seconds=200.0, router=router, failures=failures, seed=seed)
    for replicas, seconds, roll, cap in steps:
        fleet.scale(replicas)
        if roll:
            fleet.roll_out(small_hardware(blocks=300, sequences=16 + fleet.revision, batched=512))
        if cap:
            gpu = fleet.fleet.inventory.all()[seed % 16]
            fleet.limit({gpu.uuid: (300.0, None)})
        fleet.advance(fleet.fleet.now + seconds)
        accounted(fleet)
        for member in fleet.service.ready():
            if member.source is not None:
                assert member.source.source is None
                assert member.replica is member.source.replica
                assert member.source.hardware == member.hardware
    total = sum(gpu.energy_joules for gpu in fleet.fleet.inventory.all())
    both = fleet.service.energy_joules + fleet.fleet.parked_joules
    assert total == pytest.approx(both, rel=1e-9)


def test_all_requests_are_finished_at_the_end():
    fleet = chat(2)
    fleet.advance(200.0)
    ledger = accounted(fleet)
    assert ledger.attainment().unfinished == 0
    assert ledger.arrived == len(trace()) == ledger.finished
    assert len({id(member.replica) for member in fleet.service.ready()}) == 2


def test_as_many_simulated_as_there_are_is_the_exact_mode():
    outcomes = []
    for simulated in (None, 6, 9):
        fleet = chat(simulated)
        fleet.advance(150.0)
        outcomes.append((fleet.service.energy_joules, *map(float, fleet.service.ledger.samples()[1])))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("simulated", [1, 2, 3])
def test_figures_are_close_to_the_exact_mode(simulated):
    figures = []
    for count in (None, simulated):
        fleet = chat(count, rate=60.0, seconds=240.0)
        fleet.advance(60.0)
        fleet.scale(4)
        fleet.advance(120.0)
        fleet.scale(6)
        fleet.advance(240.0)
        _, ttft, tpot = accounted(fleet).samples()
        figures.append([fleet.service.energy_joules, np.median(ttft), np.median(tpot)])
    assert figures[1] == pytest.approx(figures[0], rel=0.05)


def test_a_pod_that_ends_has_its_own_requests_once():
    fleet = chat(1, replicas=4, rate=60.0)
    fleet.advance(60.0)
    before = sum(request.weight for replica in fleet.service.played() for request in replica.unfinished())
    fleet.scale(3)
    (leaving,) = [member for member in fleet.service.members.values() if member.phase.value == "Draining"]
    assert leaving.source is None
    assert {request.weight for request in leaving.replica.unfinished()} == {1}
    assert before == sum(request.weight for replica in fleet.service.played() for request in replica.unfinished())
    fleet.advance(70.0)
    assert sum(pod.phase is PodPhase.READY for pod in fleet.pods()) == 3


def test_a_split_replica_goes_on_as_the_original_would():
    one = Replica(SMALL, now=0.0)
    requests = [Request(0.1 * number, 50, 40) for number in range(30)]
    for request in requests:
        request.weight = 3
    one.submit(requests)
    one.run(1.0)
    other = split(one)
    for replica in (one, other):
        replica.run(100.0)
    late = [[request.last_token for request in replica.finished] for replica in (one, other)]
    assert late[0] == late[1]
    assert {request.weight for request in other.finished if request.last_token > 1.1} == {2}


def test_bad_settings_are_explained():
    with pytest.raises(ValueError, match="at least one"):
        chat(0)
    with pytest.raises(ValueError, match="prefix-aware"):
        chat(2, router="prefix-aware")


def test_traces_and_iterators_give_the_same_batches():
    made = trace(rate=100.0, seconds=100.0)
    queues = ArrivalQueue(made), ArrivalQueue(made.arrivals())
    for until in (0.0, 3.0, 3.0, 55.5, 200.0):
        one, other = (queue.take_until(until) for queue in queues)
        assert one == other
        assert queues[0].next_seconds == queues[1].next_seconds
    assert queues[0].next_seconds == float("inf")


def test_replicas_of_other_settings_get_their_share():
    fleet = deployed(4, rate=40.0, lifecycle=Lifecycle(startup_seconds=10.0, max_surge=0.5, max_unavailable=0.0))
    fleet.roll_out(small_hardware(blocks=300, sequences=8, batched=512))
    fleet.advance(12.0)
    assert {member.hardware.max_num_seqs for member in fleet.service.ready()} >= {8}


def test_counters_of_a_pod_go_on_where_it_begins_to_mirror_another():
    fleet = chat(1, replicas=3, seconds=400.0)
    before: dict[tuple[str, str], int] = {}
    for second in range(5, 400, 5):
        fleet.scale(3 if not 100 < second < 250 else 5)
        fleet.advance(float(second))
        now = {}
        for key, member in fleet.service.members.items():
            if member.counters is not None:
                now[key] = member.counters.ttft_seconds.count
                grown = now[key] - before.get(key, 0)
                # A pod gets 4 to 7 requests a second; those that mirror no more have served hundreds.
                assert 0 <= grown < 100, (second, key)
                assert list(member.counters.ttft_seconds.cumulative())[-1] == now[key]
        before = now
    assert len(before) == 3
