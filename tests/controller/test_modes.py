"""How far the operator goes, what it writes, and what it remembers."""

import copy
import json

import pytest

from tests.controller.world import deployment, service
from wattkeeper.controller.note import ANNOTATION

ALL = {
    "replicas": {"min": 1, "max": 6},
    "powerCap": {"min": "350W", "max": "700W"},
    "engine": {"maxNumSeqs": [256]},
    "rollout": {"minInterval": "10m"},
}
ARGS = ["--model=meta-llama/Llama-3.1-8B-Instruct", "--max-model-len=8192", "--max-num-seqs=8"]


def go_on(world, *, seconds: float = 15.0, rate: float = 1.0, **values) -> None:
    world.advance(seconds)
    world.report_agent()
    world.measure(rate=rate, **values)
    world.tick()


def crowd(world, **spec) -> None:
    world.add_node()
    world.deploy(deployment(world.namespace, "chat", replicas=2, pool=world.node, args=ARGS))
    world.report_agent()
    world.measure(rate=9.0)
    world.create(service(world.namespace, **spec))


def test_observe_measures_and_decides_nothing(world):
    crowd(world, mode="Observe", levers=ALL)
    before = copy.deepcopy(world.target()["spec"])
    for _ in range(3):
        go_on(world, rate=9.0)
    status = world.status()
    assert status["observed"]["qps"] == 18.0
    assert not status.get("plan", {}).get("reason")
    assert status.get("history", []) == []
    assert world.target()["spec"] == before
    assert world.caps() == []
    assert world.said("SLOSatisfiable") == ("Unknown", "NotPlanned")
    assert world.said("Ready")[0] == "True"
    assert world.metric("wattkeeper_plan_replicas") is None


def test_recommend_shows_the_change_and_patches_nothing(world):
    levers = {name: value for name, value in ALL.items() if name != "replicas"}
    crowd(world, mode="Recommend", levers=levers)
    before = copy.deepcopy(world.target())
    for _ in range(3):
        go_on(world, rate=9.0)
    status = world.status()
    assert status["plan"]["engine"] == {"maxNumSeqs": 256}
    diff = status["plan"]["engineDiff"].splitlines()
    assert any(line.startswith("-") and "--max-num-seqs=8" in line for line in diff)
    assert any(line.startswith("+") and "--max-num-seqs=256" in line for line in diff)
    assert status["history"][0]["change"] == "max_num_seqs 8 -> 256"
    assert status["history"][0]["applied"] is False
    after = world.target()
    assert after["spec"] == before["spec"]
    assert ANNOTATION not in after["metadata"].get("annotations", {})
    assert world.caps() == []
    assert world.said("PowerEnforced") == ("Unknown", "NotEnforcing")
    decided = status["plan"]["decidedAt"]
    go_on(world, rate=9.0, seconds=120)
    assert world.status()["plan"]["decidedAt"] == decided, "the same decision keeps its time"
    assert len(world.status()["history"]) == 1


def test_enforce_after_recommend_does_what_was_shown(world):
    crowd(world, mode="Recommend", levers=ALL)
    go_on(world, rate=9.0)
    shown = world.status()["plan"]["replicas"]
    world.change(mode="Enforce")
    go_on(world, rate=9.0)
    assert world.replicas() == shown


def test_status_is_written_only_where_something_changed(make_world):
    world = make_world(settings={"observed_refresh_seconds": 60.0})
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, mode="Recommend"))
    go_on(world, rate=4.0)
    go_on(world, rate=4.0)
    requests = world.operator.kube.requests
    before = requests.get(("PATCH", 200), 0)
    for _ in range(3):
        go_on(world, seconds=5, rate=4.0 + 0.01)
    assert requests.get(("PATCH", 200), 0) == before
    go_on(world, seconds=120, rate=4.0)
    assert requests.get(("PATCH", 200), 0) == before + 1, "measured values are refreshed now and then"
    go_on(world, seconds=5, rate=4.0, ttft=0.9)
    assert requests.get(("PATCH", 200), 0) == before + 2, "what turned is written at once"


def test_events_are_few(world):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, mode="Recommend"))
    for index in range(12):
        go_on(world, rate=4.0, ttft=0.9 + index if index % 2 else 0.09)
    assert world.events().count(("Warning", "TargetMissed")) == 1
    assert len(world.events()) <= 4


PUBLISHED = {"replicas": {"min": 1, "max": 6, "control": "External"}}
"""Enforced, but nothing moves: somebody else acts on the number."""


def test_savings_are_counted_against_a_named_counterfactual_and_survive(world):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, levers=PUBLISHED))
    for _ in range(10):
        go_on(world, seconds=60, rate=4.0, watts=400.0)
    savings = world.status()["savings"]
    assert savings["counterfactual"].startswith("static: 6 replicas at full power")
    assert savings["energyKWh"] == pytest.approx(2 * 400 * 9 * 60 / 3.6e6, rel=0.05)
    assert savings["counterfactualKWh"] > savings["energyKWh"]
    assert savings["percentLow"] < savings["percent"] < savings["percentHigh"]
    world.restart()
    go_on(world, seconds=600, rate=4.0, watts=400.0)
    go_on(world, seconds=60, rate=4.0, watts=400.0)
    after = world.status()["savings"]
    assert after["since"] == savings["since"]
    assert after["energyKWh"] == pytest.approx(savings["energyKWh"] + 2 * 400 * 60 / 3.6e6, rel=0.05)


def test_missing_watts_are_left_out_of_the_account(world):
    world.fleet(replicas=2, rate=4.0, agent=False)
    world.create(service(world.namespace, levers=PUBLISHED))
    for _ in range(4):
        world.advance(60)
        world.measure(rate=4.0, watts=None)
        world.tick()
    assert "percent" not in world.status().get("savings", {})
    assert "powerWatts" not in world.status()["observed"]


def test_what_nobody_acts_on_saves_nothing(world):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, mode="Recommend"))
    for _ in range(3):
        go_on(world, seconds=60, rate=4.0, watts=400.0)
    assert "percent" not in world.status().get("savings", {})


def test_a_new_operator_carries_on_from_the_cluster_alone(world):
    world.fleet(replicas=2, rate=4.0, ttft=0.9)
    world.create(service(world.namespace))
    go_on(world, rate=4.0, ttft=0.9)
    world.rolled_out()
    go_on(world, rate=4.0)
    go_on(world, rate=4.0)
    before = world.status()
    assert before["history"]
    assert before["memory"]["lastScaleUp"]
    world.restart()
    go_on(world, rate=4.0)
    after = world.status()
    assert after["history"][-1] == before["history"][-1]
    assert after["memory"]["lastScaleUp"] == before["memory"]["lastScaleUp"]
    assert after["memory"]["correction"]["samples"] == before["memory"]["correction"]["samples"] + 1
    if after["plan"].get("powerCapWatts") == before["plan"].get("powerCapWatts"):
        assert after["plan"]["decidedAt"] == before["plan"]["decidedAt"]
    for item in before["conditions"]:
        now = next(found for found in after["conditions"] if found["type"] == item["type"])
        if now["status"] == item["status"]:
            assert now["lastTransitionTime"] == item["lastTransitionTime"]


def test_no_scale_down_by_a_new_operator_before_it_saw_enough(world):
    world.fleet(replicas=3, rate=0.5)
    world.create(service(world.namespace))
    for _ in range(18):
        world.restart()
        go_on(world, seconds=60, rate=0.5)
        go_on(world, seconds=60, rate=0.5)
    assert world.replicas() == 3
    for _ in range(12):
        go_on(world, seconds=60, rate=0.5)
    assert world.replicas() < 3


def test_an_invalid_spec_is_told_and_remembered_things_stay(world, monkeypatch):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace))
    go_on(world, rate=4.0)
    go_on(world, rate=4.0)
    before = world.status()
    live = world.operator.cache.objects

    def broken(kind):
        found = live(kind)
        if kind.plural == "inferenceservices":
            found = copy.deepcopy(found)
            for body in found:
                body["spec"]["slo"] = {"ttft": {"target": "soon"}}
        return found

    world.operator.loop.resolver._parsed.clear()
    with monkeypatch.context() as patched:
        patched.setattr(world.operator.cache, "objects", broken)
        world.tick(2)
    status = world.status()
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert "slo.ttft.target" in ready["message"]
    assert status["phase"] == "Degraded"
    assert status["memory"] == before["memory"]
    assert status["savings"] == before["savings"]
    world.operator.loop.resolver._parsed.clear()
    go_on(world, rate=4.0)
    assert world.said("Ready")[0] == "True"
    assert len(world.status()["conditions"]) == len(before["conditions"])


def test_own_metrics_are_forgotten_with_the_service(world):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace))
    go_on(world, rate=4.0)
    assert world.metric("wattkeeper_plan_replicas")
    assert world.metric("wattkeeper_observed_requests_per_second") == 8.0
    assert world.metric("wattkeeper_service_condition", type="Ready") == 1.0
    assert world.metric("wattkeeper_planner_decisions_total", reason=world.status()["plan"]["reason"])
    world.delete("inferenceservices", "chat")
    go_on(world)
    left = [
        sample
        for family in world.operator.metrics.registry.collect()
        for sample in family.samples
        if sample.labels.get("service") == "chat"
    ]
    assert left == []


def test_an_autoscaler_never_follows_a_number_that_is_no_more(world):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, levers={"replicas": {"min": 1, "max": 6, "control": "External"}}))
    go_on(world, rate=4.0)
    assert world.metric("wattkeeper_plan_replicas")
    world.change(mode="Observe")
    go_on(world, rate=4.0)
    assert world.metric("wattkeeper_plan_replicas") is None


def test_the_status_fits_a_merge_patch(world):
    """What vanishes from a decision vanishes from the object."""
    world.fleet(replicas=2, rate=1.0)
    world.create(service(world.namespace, levers={"powerCap": {"min": "350W", "max": "700W"}}))
    go_on(world)
    go_on(world)
    assert "powerCapWatts" in world.status()["plan"]
    go_on(world, ttft=0.9, rate=4.0)
    assert "powerCapWatts" not in world.status()["plan"], json.dumps(world.status()["plan"])
