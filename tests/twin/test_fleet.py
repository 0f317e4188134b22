"""Fleets: every request is accounted for, energy adds up, pods start and drain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.twin.test_replica import small_hardware
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces import generate
from wattkeeper.traces.trace import RateSeries
from wattkeeper.twin import hardware
from wattkeeper.twin.fleet import Fleet, Phase, Service
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory, NoFreeGpuError, gpu_uuid

LENGTHS = LengthDistribution.lognormal(mean=60, coefficient_of_variation=0.8)
CARD = hardware.card("h100")


def arrivals(rate, seconds, seed=0):
    series = RateSeries(times_seconds=(0.0, seconds), requests_per_second=(rate, rate))
    return generate.generate(series, prompt=LENGTHS, output=LENGTHS, seed=seed).arrivals()


def fleet_of(pods, rate=5.0, seconds=60.0, nodes=2, seed=0):
    inventory = Inventory()
    for index in range(nodes):
        inventory.ensure(f"node-{index}", CARD, 4)
    fleet = Fleet(inventory)
    fleet.services["chat"] = Service(
        name="chat",
        slo=SloTargets(ttft_seconds=0.5, tpot_seconds=0.05),
        arrivals=arrivals(rate, seconds, seed),
    )
    for index in range(pods):
        add(fleet, index)
        fleet.set_ready("chat", ("ml", f"chat-{index}"))
    return fleet


def add(fleet, index, node=None):
    fleet.add_pod(
        "chat",
        ("ml", f"chat-{index}"),
        node=node or f"node-{index // 4}",
        container="vllm",
        hardware=small_hardware(blocks=300, sequences=32, batched=512),
    )


def balance(fleet):
    service = fleet.services["chat"]
    inside = sum(m.replica.outstanding for m in service.members.values() if m.replica)
    ledger = service.ledger
    assert ledger.arrived == ledger.finished + ledger.lost + inside
    return ledger


@settings(deadline=None, max_examples=40)
@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(["add", "ready", "drain", "kill", "wait", "cap"]), st.integers(0, 7), st.floats(0.1, 6.0)
        ),
        max_size=25,
    ),
    seed=st.integers(0, 50),
)
def test_every_request_and_joule_is_accounted_for(actions, seed):
    fleet = fleet_of(2, seed=seed)
    service = fleet.services["chat"]
    for action, index, seconds in actions:
        key = ("ml", f"chat-{index}")
        member = service.members.get(key)
        if action == "add" and member is None:
            add(fleet, index)
        elif action == "ready" and member is not None:
            fleet.set_ready("chat", key)
        elif action == "drain" and member is not None:
            fleet.remove_pod("chat", key, grace_seconds=seconds)
        elif action == "kill" and member is not None:
            fleet.kill_pod("chat", key)
        elif action == "cap" and member is not None:
            fleet.set_power(member.gpus[0], watts=100 * seconds, clock_mhz=None)
        fleet.advance(fleet.now + seconds)
        balance(fleet)
    held = sum(gpu.holder is not None for gpu in fleet.inventory.all())
    assert held == sum(len(member.gpus) for member in service.members.values())
    total = sum(gpu.energy_joules for gpu in fleet.inventory.all())
    parked = (len(fleet.inventory.all()) * fleet.now - service.gpu_seconds) * CARD.parked_watts
    assert total == pytest.approx(service.energy_joules + parked, rel=1e-6, abs=200.0)


def test_more_pods_share_the_load_evenly():
    fleet = fleet_of(4, rate=20.0)
    fleet.advance(60.0)
    shares = [m.replica.counters.prompt_lengths.count for m in fleet.services["chat"].members.values()]
    assert max(shares) < 1.3 * min(shares)


def test_results_do_not_depend_on_how_time_is_cut():
    outcomes = []
    for step in (40.0, 1.0):
        fleet = fleet_of(3, rate=15.0)
        while fleet.now < 80:
            fleet.advance(fleet.now + step)
        ledger = balance(fleet)
        outcomes.append((ledger.finished, sum(ledger.samples()[1]), fleet.services["chat"].energy_joules / fleet.now))
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][1] == pytest.approx(outcomes[1][1], rel=0.02)
    assert outcomes[0][2] == pytest.approx(outcomes[1][2], rel=0.02)


def test_a_starting_pod_takes_nothing_and_draws_start_up_power():
    fleet = fleet_of(0)
    add(fleet, 0)
    fleet.advance(10.0)
    service = fleet.services["chat"]
    assert service.ledger.lost_by_reason["no_ready_pod"] == service.ledger.arrived > 0
    assert service.energy_joules == pytest.approx(10 * CARD.startup_watts)


def test_draining_finishes_or_loses():
    for grace, lost in ((60.0, False), (0.2, True)):
        fleet = fleet_of(1, rate=40.0, seconds=20.0)
        fleet.advance(10.0)
        fleet.remove_pod("chat", ("ml", "chat-0"), grace_seconds=grace)
        assert fleet.services["chat"].members["ml", "chat-0"].phase is Phase.DRAINING
        fleet.advance(10.1)
        fleet.advance(80.0)
        service = fleet.services["chat"]
        assert not service.members
        assert (service.ledger.lost_by_reason["grace_over"] > 0) is lost
        attainment = service.ledger.attainment()
        assert attainment.unfinished == 0
        assert attainment.share < 1.0


def test_gpus_have_fixed_names_and_run_out():
    fleet = fleet_of(4)
    assert fleet.inventory.nodes["node-0"][2].uuid == gpu_uuid("node-0", 2)
    with pytest.raises(NoFreeGpuError, match="node-0"):
        add(fleet, 9, node="node-0")


def test_caps_are_clamped_and_power_stays_below_them():
    fleet = fleet_of(1, rate=60.0, seconds=30.0)
    gpu = fleet.services["chat"].members["ml", "chat-0"].gpus[0]
    fleet.set_power(gpu, watts=50.0, clock_mhz=None)
    assert (gpu.limit_watts, gpu.clamped) == (200.0, True)
    fleet.set_power(gpu, watts=300.0, clock_mhz=None)
    fleet.advance(20.0)
    # The clock follows the work of windows that are over, so a single second may lie a little above.
    assert 150.0 < gpu.power_watts <= 309.0
    fleet.set_power(gpu, watts=None, clock_mhz=None)
    assert gpu.limit_watts == 700.0


def test_percentiles_by_bin():
    fleet = fleet_of(2)
    fleet.advance(70.0)
    middle, ttft, tpot = fleet.services["chat"].ledger.percentiles(bin_seconds=20.0, percentile=95)
    ledger = fleet.services["chat"].ledger
    _, all_ttft, all_tpot = ledger.samples()
    assert ledger.attainment().met == ((all_ttft <= 0.5) & (all_tpot <= 0.05)).sum()
    assert middle.tolist() == [10.0, 30.0, 50.0]
    assert (ttft > 0).all()
    assert (tpot > 0).all()
