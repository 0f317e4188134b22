"""Power caps: set, renewed, refused, given back; without an agent the plan does without them."""

import copy

import pytest

from tests.controller.world import service
from wattkeeper.controller import cache

CAP_ONLY = {"powerCap": {"min": "350W", "max": "700W"}}


def go_on(world, *, seconds: float = 15.0, **agent) -> None:
    world.advance(seconds)
    world.report_agent(**agent)
    world.measure(rate=1.0)
    world.tick()


@pytest.fixture
def quiet(world):
    world.fleet(replicas=2, rate=1.0)
    world.create(service(world.namespace, levers=CAP_ONLY))
    return world


def test_a_cap_is_asked_for_obeyed_and_shown_in_four_figures(quiet):
    world = quiet
    go_on(world)
    go_on(world)
    go_on(world)
    (watts,) = world.watts()
    assert 350 <= watts < 700
    assert len(world.caps()) == 2
    assert {entry["owner"] for entry in world.caps()} == {f"{world.namespace}/chat"}
    assert world.status()["applied"]["powerCapWatts"] == {
        "requested": watts,
        "clamped": watts,
        "enforced": watts,
        "measured": 400.0,
    }
    assert world.said("PowerEnforced") == ("True", "Enforced")


def test_a_steady_cap_is_renewed_at_half_its_life_and_not_more_often(quiet):
    world = quiet
    go_on(world)
    go_on(world)
    first = world.caps()
    go_on(world, seconds=30)
    assert world.caps() == first
    go_on(world, seconds=60)
    renewed = world.caps()
    assert [entry["watts"] for entry in renewed] == [entry["watts"] for entry in first]
    assert renewed[0]["expiresAt"] > first[0]["expiresAt"]
    assert world.metric("wattkeeper_actuator_actions_total", action="cap") == 1.0, "a renewal is no action"


def test_without_an_agent_the_plan_does_without_caps(world):
    world.fleet(replicas=2, rate=1.0, agent=False)
    world.create(service(world.namespace, levers=CAP_ONLY))
    world.tick(3)
    assert world.said("PowerEnforced") == ("False", "AgentAbsent")
    assert world.node in world.condition("PowerEnforced")["message"]
    assert "powerCapWatts" not in world.status()["plan"]
    assert world.caps() == []
    assert world.kube.get(world.path("nodepowercaps", world.node))["spec"] == {"caps": []}, "for the agent to report in"
    go_on(world)
    go_on(world)
    assert world.said("PowerEnforced")[0] == "True"
    assert world.caps()


def test_an_agent_that_falls_silent_is_absent(quiet):
    world = quiet
    go_on(world)
    go_on(world)
    assert world.caps()
    world.advance(100)
    world.measure(rate=1.0)
    world.tick()
    assert world.said("PowerEnforced") == ("False", "AgentAbsent")
    assert world.caps() == []
    assert ("Warning", "AgentAbsent") in world.events()


def test_a_refused_cap_is_let_go_and_not_asked_for_at_once(quiet):
    world = quiet
    go_on(world)
    go_on(world, enforced=700.0)
    assert world.said("PowerEnforced")[0] == "True", "a card may take a minute"
    go_on(world, seconds=70, enforced=700.0)
    assert world.said("PowerEnforced") == ("False", "CapRefused")
    assert world.caps() == []
    assert "powerCapWatts" not in world.status()["plan"]
    history = world.status()["history"]
    for _ in range(5):
        go_on(world, enforced=700.0)
    assert world.said("PowerEnforced") == ("False", "CapRefused")
    assert world.caps() == [], "it does not come and go"
    assert world.status()["history"] == history
    go_on(world, seconds=1800)
    go_on(world)
    assert world.caps(), "tried again later"
    assert world.said("PowerEnforced")[0] == "True"


def test_a_cap_that_is_refused_is_seen_also_after_a_restart(quiet):
    world = quiet
    go_on(world)
    go_on(world)
    assert world.caps()
    world.restart()
    go_on(world, enforced=700.0)
    go_on(world, seconds=70, enforced=700.0)
    assert world.said("PowerEnforced") == ("False", "CapRefused")


def test_a_gpu_of_somebody_else_is_left_alone(quiet):
    world = quiet
    world.tick()
    world.report_agent()
    foreign = {
        "uuid": f"GPU-{world.pod_names()[0]}",
        "watts": 300,
        "owner": "other/service",
        "expiresAt": "2099-01-01T00:00:00Z",
    }
    world.patch("nodepowercaps", world.node, {"spec": {"caps": [foreign]}})
    for _ in range(4):  # a limit moved at the first tick: the next one comes when it pays for that
        go_on(world)
    assert foreign in world.caps()
    assert world.said("Conflict") == ("True", "GpuHeldByOther")
    assert len(world.caps()) == 2


@pytest.mark.parametrize(
    "change",
    [{"mode": "Recommend"}, {"mode": "Observe"}, {"levers": {"powerCap": None, "replicas": {"min": 2, "max": 2}}}],
)
def test_leaving_enforce_or_the_lever_gives_the_power_back(quiet, change):
    world = quiet
    go_on(world)
    go_on(world)
    assert world.caps()
    world.change(**change)
    go_on(world)
    assert world.caps() == []


def test_paused_renews_caps_and_does_nothing_else(quiet):
    world = quiet
    go_on(world)
    go_on(world)
    before, target = world.caps(), copy.deepcopy(world.target()["spec"])
    world.change(paused=True, levers={**CAP_ONLY, "replicas": {"min": 5, "max": 6}})
    go_on(world)
    assert world.said("Ready") == ("False", "Paused")
    assert world.status()["phase"] == "Paused"
    go_on(world, seconds=120)
    go_on(world, seconds=120)
    after = world.caps()
    assert [entry["watts"] for entry in after] == [entry["watts"] for entry in before]
    assert after[0]["expiresAt"] > before[0]["expiresAt"]
    assert world.target()["spec"] == target
    assert world.status()["observed"]["qps"] == 2.0
    world.change(paused=False)
    go_on(world)
    assert world.replicas() == 5


def test_caps_of_an_operator_that_was_away_for_long_are_not_taken_for_set(quiet):
    world = quiet
    go_on(world)
    go_on(world)
    world.change(paused=True)
    world.restart()
    go_on(world, seconds=1000)
    assert world.caps() == [], "what ran out is not renewed"


def test_a_power_cap_kind_that_is_not_served_is_told(quiet):
    world = quiet
    world.operator.cache.shelves.pop(cache.POWER_CAPS)
    go_on(world)
    assert world.said("PowerEnforced") == ("False", "CrdNotInstalled")
    assert "crds/" in world.condition("PowerEnforced")["message"]
