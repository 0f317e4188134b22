"""What the operator does where measurements fail, drift, or speak of nothing to do. Never less on missing evidence."""

import dataclasses

import pytest

from tests.controller.world import reading, service
from wattkeeper.energy.online import OnlineCorrection


@pytest.fixture
def capped(world):
    """A lightly loaded fleet whose cards are capped."""
    world.fleet(replicas=3, rate=1.0)
    world.create(service(world.namespace, levers={"powerCap": {"min": "350W", "max": "700W"}}))
    world.tick(2)
    world.report_agent()
    world.measure(rate=1.0)
    world.tick()
    assert world.caps()
    assert world.said("PowerEnforced") == ("True", "Enforced")
    return world


def keep_reporting(world, *, rate: float, seconds: float, every: float = 30.0) -> None:
    for _ in range(int(seconds / every)):
        world.advance(every)
        world.report_agent()
        world.measure(rate=rate)
        world.tick()


def test_prometheus_down_holds_then_lifts_caps_and_never_scales_down(capped):
    world, before = capped, capped.watts()
    world.source.failure = "connection refused"
    world.advance(30)
    world.report_agent()
    world.tick()
    assert world.said("MetricsAvailable")[0] == "True"
    assert "connection refused" in world.condition("MetricsAvailable")["message"]
    assert world.watts() == before
    world.advance(40)
    world.report_agent()
    world.tick()
    assert world.said("MetricsAvailable") == ("False", "MetricsUnreachable")
    assert world.said("Ready") == ("False", "MetricsUnreachable")
    assert world.status()["plan"]["reason"] == "MetricsLost"
    assert world.caps() == []
    for _ in range(10):
        world.advance(300)
        world.report_agent()
        world.tick()
    assert world.replicas() == 3
    assert world.caps() == []
    world.source.failure = None
    world.measure(rate=1.0)
    world.report_agent()
    world.tick()
    assert world.said("MetricsAvailable") == ("True", "MetricsFound")
    assert ("Warning", "MetricsUnreachable") in world.events()
    assert ("Normal", "MetricsAvailableRestored") in world.events()


@pytest.mark.parametrize("how", ["missing", "stale"])
def test_one_pod_without_series_is_left_out(world, how):
    world.fleet(replicas=3, rate=4.0)
    world.create(service(world.namespace))
    world.tick(2)
    key = (world.namespace, world.pod_names()[0])
    if how == "missing":
        del world.source.pods[key]
    else:
        world.source.pods[key] = dataclasses.replace(world.source.pods[key], age_seconds=3600.0)
    world.tick()
    assert world.said("MetricsAvailable") == ("True", "MetricsPartial")
    assert key[1] in world.condition("MetricsAvailable")["message"]
    assert world.status()["observed"]["pods"] == "2/3"
    assert world.status()["observed"]["qps"] == pytest.approx(12.0)
    assert world.replicas() >= 3


@pytest.mark.parametrize("how", ["missing", "stale"])
def test_no_series_at_all_is_as_a_source_that_is_down(capped, how):
    world = capped
    if how == "missing":
        world.source.pods = {}
    else:
        world.source.pods = {
            key: dataclasses.replace(found, age_seconds=3600.0) for key, found in world.source.pods.items()
        }
    world.tick()
    assert world.said("MetricsAvailable") == ("False", {"missing": "MetricsAbsent", "stale": "MetricsStale"}[how])
    assert world.caps() == []
    assert world.replicas() == 3
    assert world.condition("SLOMet")["status"] == "Unknown"


def test_a_pod_that_is_not_ready_yet_is_no_gap(world):
    world.fleet(replicas=2, rate=1.0)
    world.cordon()
    world.patch("deployments", "chat", {"spec": {"replicas": 3}}, manager="kubectl")
    world.create(service(world.namespace))
    world.tick(2)
    assert world.said("MetricsAvailable") == ("True", "MetricsFound")
    assert world.status()["observed"]["pods"] == "2/2"


def test_idle_is_a_real_zero(world):
    world.fleet(replicas=3, rate=2.0)
    world.create(
        service(world.namespace, levers={"replicas": {"min": 1, "max": 6}, "powerCap": {"min": "350W", "max": "700W"}})
    )
    world.tick()
    keep_reporting(world, rate=0.0, seconds=240)
    assert world.said("MetricsAvailable") == ("True", "MetricsFound")
    assert world.said("SLOMet") == ("True", "Idle")
    assert world.replicas() == 3, "nothing may go before a full window of rates was seen"
    keep_reporting(world, rate=0.0, seconds=2400, every=60)
    assert world.replicas() == 1
    assert world.status()["plan"]["reason"] == "Idle"
    assert world.watts() == {350.0}


def test_requests_never_seen_is_not_idle(world):
    world.fleet(replicas=3, rate=0.0)
    world.source.pods = {
        key: dataclasses.replace(found, prompt_tokens=None, output_tokens=None)
        for key, found in world.source.pods.items()
    }
    world.create(service(world.namespace))
    world.tick(2)
    assert world.status()["plan"]["reason"] == "NoWorkloadSeenYet"
    assert world.replicas() == 3
    assert world.caps() == []


def test_a_model_file_of_another_version_leaves_physics_and_says_so(world, tmp_path):
    old = tmp_path / "energy-v1.json"
    old.write_text('{"format": "wattkeeper-energy-model", "format_version": 1, "payload": {}}')
    world.energy_model = old
    world.restart()
    world.fleet(replicas=3, rate=4.0)
    world.create(service(world.namespace))
    world.tick(2)
    assert world.said("ModelTrusted") == ("False", "NoEnergyModel")
    message = world.condition("ModelTrusted")["message"]
    assert "physics alone" in message and "energy-v1.json has format 1, this program reads 2" in message
    assert world.status()["plan"]["reason"]


def test_a_model_that_drifts_is_not_trusted(world):
    world.fleet(replicas=3, rate=4.0)
    world.create(service(world.namespace))
    world.tick(2)
    assert world.said("ModelTrusted")[0] == "True"
    for _ in range(40):
        world.advance(15)
        world.report_agent()
        world.measure(rate=4.0, watts=90.0)
        world.tick()
    assert world.said("ModelTrusted") == ("False", "PredictionDrift")
    assert world.said("Ready") == ("False", "PredictionDrift")
    assert "wider latency margins" in world.condition("ModelTrusted")["message"]
    assert world.status()["memory"]["correction"]["trusted"] is False
    world.restart()
    world.measure(rate=4.0, watts=90.0)
    world.tick()
    assert world.said("ModelTrusted") == ("False", "PredictionDrift")


def test_trust_is_kept_in_the_object():
    state = OnlineCorrection()
    for _ in range(50):
        state = state.update(predicted_watts=1000.0, measured_watts=300.0)
    assert not OnlineCorrection.from_dict(state.to_dict()).trusted


def test_no_feasible_plan_names_the_constraint_and_gives_all_there_is(world):
    world.fleet(replicas=2, rate=40.0)
    world.create(
        service(world.namespace, levers={"replicas": {"min": 1, "max": 3}, "powerCap": {"min": "350W", "max": "700W"}})
    )
    world.tick(2)
    found = world.condition("SLOSatisfiable")
    assert found["status"] == "False"
    assert found["reason"] in {"Stability", "PlannedLoad", "Ttft", "Tpot", "KvCache"}
    assert "raise levers.replicas.max" in found["message"]
    assert world.status()["plan"]["reason"] == "NoFeasiblePlan"
    assert world.replicas() == 3
    assert world.caps() == []
    assert ("Warning", found["reason"]) in world.events()


def test_a_missed_slo_gets_more_capacity_now(world):
    world.fleet(replicas=2, rate=4.0, ttft=0.9)
    world.create(service(world.namespace))
    world.tick(2)
    assert world.said("SLOMet") == ("False", "TargetMissed")
    assert "TTFT p95" in world.condition("SLOMet")["message"]
    assert world.status()["plan"]["reason"] == "SloAtRisk"
    assert world.replicas() > 2
    assert world.said("Ready")[0] == "True", "the operator does what it can: the SLO has a condition of its own"


@pytest.mark.parametrize("goal", ["ttft", "tpot"])
def test_an_objective_of_one_target_is_enough(world, goal):
    world.fleet(replicas=3, rate=4.0)
    target = {"ttft": "500ms", "tpot": "50ms"}[goal]
    world.create(service(world.namespace, slo={goal: {"target": target}}))
    world.tick(2)
    assert world.said("SLOSatisfiable") == ("True", "Feasible")
    assert world.said("SLOMet") == ("True", "TargetsMet")
    assert world.status()["plan"]["predicted"][goal]


def test_the_agents_readings_stand_in_for_a_power_exporter(world):
    world.fleet(replicas=2, rate=4.0)
    world.source.pods = {key: dataclasses.replace(reading(*key, now=world.now()), gpus=()) for key in world.source.pods}
    world.create(service(world.namespace))
    world.tick(2)
    assert world.status()["observed"]["powerWatts"] == 800.0
