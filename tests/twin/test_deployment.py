"""What a Deployment does to a fleet in simulated time: starts, roll-outs, drains, failures, missing GPUs, power."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.twin.test_fleet import CARD, arrivals, balance
from tests.twin.test_replica import small_hardware
from wattkeeper.twin import deployment
from wattkeeper.twin.deployment import Deployment, Failure, FailureKind, Lifecycle, PodPhase
from wattkeeper.twin.fleet import Fleet, Service
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory
from wattkeeper.twin.routers import ROUTERS

SMALL = small_hardware(blocks=300, sequences=32, batched=512)


def deployed(replicas=2, *, gpus=8, rate=5.0, seconds=600.0, lifecycle=None, failures=(), router="least-outstanding"):
    inventory = Inventory()
    for index in range(-(-gpus // 4)):
        inventory.ensure(f"node-{index}", CARD, min(4, gpus - 4 * index))
    fleet = Fleet(inventory)
    fleet.services["chat"] = Service(
        name="chat",
        slo=SloTargets(ttft_seconds=0.5, tpot_seconds=0.05),
        arrivals=arrivals(rate, seconds),
        router=ROUTERS[router](),
    )
    return Deployment(
        fleet,
        name="chat",
        namespace="ml",
        hardware=SMALL,
        replicas=replicas,
        lifecycle=lifecycle or Lifecycle(startup_seconds=60.0, grace_seconds=5.0),
        failures=failures,
    )


def count(pods, phase):
    return sum(pod.phase is phase for pod in pods)


def test_the_first_pods_are_ready_and_later_ones_start():
    chat = deployed(2)
    assert count(chat.pods(), PodPhase.READY) == 2
    chat.advance(10.0)
    chat.scale(3)
    assert count(chat.pods(), PodPhase.STARTING) == 1
    chat.advance(69.0)
    assert count(chat.pods(), PodPhase.READY) == 2
    chat.advance(71.0)
    assert count(chat.pods(), PodPhase.READY) == 3
    assert chat.pods()[-1].ready_since_seconds == 70.0
    assert chat.service.startup_joules == pytest.approx(60.0 * CARD.startup_watts)
    balance(chat.fleet)


def test_a_lower_count_takes_starting_pods_first_then_the_youngest():
    chat = deployed(3)
    chat.advance(10.0)
    chat.scale(4)
    chat.scale(3)
    assert count(chat.pods(), PodPhase.STARTING) == 0
    chat.scale(4)
    chat.advance(100.0)
    chat.scale(2)
    chat.advance(120.0)
    names = [pod.key[1] for pod in chat.pods()]
    assert names == ["chat-1-1", "chat-1-2"]
    balance(chat.fleet)


def test_pods_without_gpus_wait_and_are_placed_when_some_are_free():
    chat = deployed(4, gpus=4)
    chat.scale(5)
    assert chat.pending == 1
    assert count(chat.pods(), PodPhase.PENDING) == 1
    chat.advance(30.0)
    assert count(chat.pods(), PodPhase.PENDING) == 1
    chat.fleet.kill_pod("chat", ("ml", "chat-1-1"))
    chat.advance(40.0)
    assert count(chat.pods(), PodPhase.PENDING) == 1, "the replacement of the one that died waits now"
    assert count(chat.pods(), PodPhase.STARTING) == 1


@pytest.mark.parametrize(("surge", "unavailable"), [(0.25, 0.25), (0.5, 0.0), (0.0, 0.5), (0.0, 0.0)])
def test_a_roll_out_replaces_all_pods_within_its_bounds(surge, unavailable):
    lifecycle = Lifecycle(startup_seconds=30.0, grace_seconds=2.0, max_surge=surge, max_unavailable=unavailable)
    chat = deployed(4, gpus=12, lifecycle=lifecycle)
    chat.advance(5.0)
    other = small_hardware(blocks=300, sequences=16, batched=512)
    chat.roll_out(other)
    least, most = 4, 0
    for second in range(6, 400):
        chat.advance(float(second))
        least = min(least, count(chat.pods(), PodPhase.READY))
        most = max(most, len(chat.pods()) - count(chat.pods(), PodPhase.DRAINING))
    assert not chat.rolling_out
    assert {pod.revision for pod in chat.pods()} == {2}
    assert count(chat.pods(), PodPhase.READY) == 4
    assert least >= 4 - max(int(4 * unavailable), 1 if surge == 0 else 0)
    assert most <= 4 + -(-int(400 * surge) // 100)
    assert {member.hardware for member in chat.service.members.values()} == {other}
    balance(chat.fleet)


def test_a_dead_pod_is_replaced_and_a_lost_node_stays_away():
    failures = (
        Failure(at_seconds=20.0),
        Failure(at_seconds=200.0, kind=FailureKind.NODE, down_seconds=300.0),
    )
    chat = deployed(4, gpus=8, failures=failures)
    chat.advance(21.0)
    assert (count(chat.pods(), PodPhase.READY), count(chat.pods(), PodPhase.STARTING)) == (3, 1)
    chat.advance(90.0)
    before = {pod.node for pod in chat.pods()}
    chat.advance(201.0)
    gone = before - {pod.node for pod in chat.pods()}
    assert gone, "the pods of one node died and none was placed there again"
    chat.advance(600.0)
    assert count(chat.pods(), PodPhase.READY) == 4
    assert balance(chat.fleet).lost_by_reason["pod_ended"] > 0


def test_power_follows_the_pods():
    chat = deployed(2)
    chat.set_power(watts=400.0, clock_mhz=None)
    chat.scale(3)
    chat.advance(100.0)
    limits = [gpu.limit_watts for gpu in chat.fleet.inventory.all() if gpu.holder is not None]
    assert limits == [400.0] * 3
    chat.scale(1)
    chat.advance(120.0)
    assert sum(gpu.requested_watts == 400.0 for gpu in chat.fleet.inventory.all()) == 1


def test_failures_are_drawn_by_rate_and_seed():
    drawn = deployment.draw_failures(per_day=50.0, span_seconds=86400.0, seed=3)
    assert drawn == deployment.draw_failures(per_day=50.0, span_seconds=86400.0, seed=3)
    assert 25 < len(drawn) < 85
    assert deployment.draw_failures(per_day=0.0, span_seconds=86400.0, seed=3) == ()
    with pytest.raises(ValueError, match="rate"):
        deployment.draw_failures(per_day=-1.0, span_seconds=1.0, seed=0)


@settings(deadline=None, max_examples=30)
@given(
    steps=st.lists(st.tuples(st.integers(0, 9), st.floats(1.0, 80.0), st.booleans()), min_size=1, max_size=8),
    router=st.sampled_from(sorted(ROUTERS)),
    seed=st.integers(0, 100),
)
@example(steps=[(5, 1.0, True), (3, 1.0, False)], router="least-kv", seed=0)
def test_no_request_is_ever_lost_silently(steps, router, seed):
    failures = deployment.draw_failures(per_day=2000.0, span_seconds=400.0, seed=seed, node_share=0.3)
    chat = deployed(3, router=router, failures=failures, lifecycle=Lifecycle(startup_seconds=20.0, startup_sigma=0.3))
    for replicas, seconds, roll in steps:
        chat.scale(replicas)
        if roll:
            chat.roll_out(small_hardware(blocks=300, sequences=16 + chat.revision, batched=512))
        chat.advance(chat.fleet.now + seconds)
        balance(chat.fleet)
        assert sum(pod.phase is not PodPhase.DRAINING for pod in chat.pods()) <= replicas + -(-replicas // 4) + 1
        held = sum(gpu.holder is not None for gpu in chat.fleet.inventory.all())
        assert held == sum(len(pod.gpus) for pod in chat.pods())
