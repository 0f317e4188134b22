"""Roll-outs of engine arguments: begun, watched, taken back once where they fail, and remembered."""

import copy
import json

import pytest

from tests.controller.world import deployment, service
from wattkeeper.controller.note import ANNOTATION, read_note

ARGS = ["--model=meta-llama/Llama-3.1-8B-Instruct", "--max-model-len=8192", "--max-num-seqs=8", "--seed", "7"]
LEVERS = {"engine": {"maxNumSeqs": [256]}, "rollout": {"minInterval": "10m"}}


@pytest.fixture
def crowded(world):
    """A fleet whose arguments admit too few sequences for its load: only other arguments meet the SLO."""
    world.add_node(gpus=4)
    world.deploy(deployment(world.namespace, "chat", replicas=2, pool=world.node, args=ARGS, progressDeadlineSeconds=3))
    world.report_agent()
    world.measure(rate=9.0)
    world.create(service(world.namespace, levers=LEVERS))
    return world


def go_on(world, *, seconds: float = 0.0, rate: float = 9.0, **values) -> None:
    """Time passes, everything reports, and a pass is made."""
    world.advance(seconds)
    world.report_agent()
    world.measure(rate=rate, **values)
    world.tick()


def begin(world) -> None:
    for _ in range(4):
        go_on(world)
        if world.container()["args"] != ARGS:
            return
    raise AssertionError(f"no roll-out was begun: {world.status()['plan']}, {world.said('Rollout')}")


def test_arguments_are_rolled_out_watched_and_done(crowded):
    world, others = crowded, [item for item in ARGS if "num-seqs" not in item]
    begin(world)
    args = world.container()["args"]
    assert "--max-num-seqs=256" in args
    assert [item for item in args if "num-seqs" not in item] == others, "other flags stay, byte for byte"
    note = read_note(world.target())
    assert note is not None
    assert note.before["args"] == ARGS
    assert ("Normal", "RolloutStarted") in world.events()
    world.tick()
    assert world.status()["memory"]["lastRollout"]
    world.rolled_out()
    go_on(world)
    assert read_note(world.target()).ready_at
    assert world.said("Rollout") == ("True", "Complete")
    go_on(world, seconds=300)
    assert read_note(world.target()) is not None, "the SLO is still being watched"
    go_on(world, seconds=400)
    assert ANNOTATION not in world.target()["metadata"].get("annotations", {})
    assert "--max-num-seqs=256" in world.container()["args"]


def test_a_stuck_roll_out_goes_back_once_and_is_remembered(crowded):
    world = crowded
    before = copy.deepcopy(world.container())
    world.cordon()
    begin(world)
    world.wait_for(lambda: progress(world) == "ProgressDeadlineExceeded", seconds=30)
    go_on(world)
    assert world.container() == before, "byte for byte as before"
    assert world.said("Rollout")[0] in ("False", "Unknown")
    assert ("Warning", "RolledBack") in world.events()
    world.cordon(on=False)
    world.rolled_out()
    for _ in range(3):
        go_on(world)
    status = world.status()
    assert world.said("Rollout") == ("False", "RolledBack")
    assert "not tried again" in world.condition("Rollout")["message"]
    assert status["memory"]["badEngines"] == [{"maxNumSeqs": 256}]
    assert ANNOTATION not in world.target()["metadata"].get("annotations", {})
    world.restart()
    for _ in range(6):
        go_on(world, seconds=700)
    assert world.container() == before, "not tried again, also by a new operator"
    assert world.said("Rollout") == ("False", "RolledBack")
    assert [item for item in world.events() if item[1] == "RolledBack"] == [("Warning", "RolledBack")]


def progress(world) -> str:
    found = [item for item in world.target()["status"].get("conditions", []) if item["type"] == "Progressing"]
    return found[0]["reason"] if found else ""


def test_an_operator_that_dies_right_after_a_roll_back_still_remembers(crowded):
    world = crowded
    before = copy.deepcopy(world.container())
    begin(world)
    world.rolled_out()
    note = read_note(world.target())
    failed = {**json.loads(note.dump()), "failed": "max_num_seqs=256: pods did not become ready"}
    body = {
        "metadata": {"annotations": {ANNOTATION: json.dumps(failed)}},
        "spec": {"template": {"spec": {"containers": [before]}}},
    }
    world.patch("deployments", "chat", body)
    world.restart()
    world.rolled_out()
    go_on(world)
    assert world.status()["memory"]["badEngines"] == [{"maxNumSeqs": 256}]
    go_on(world)
    assert ANNOTATION not in world.target()["metadata"].get("annotations", {})
    go_on(world, seconds=4000)
    assert world.container()["args"] == ARGS


def test_a_roll_out_that_breaks_the_slo_goes_back(crowded):
    world = crowded
    begin(world)
    assert read_note(world.target()).slo_was_met
    world.rolled_out()
    go_on(world)
    go_on(world, seconds=20, ttft=0.9)
    assert "--max-num-seqs=256" in world.container()["args"], "requests of the roll-out itself do not count"
    go_on(world, seconds=60, ttft=0.9)
    assert world.container()["args"] == ARGS
    world.rolled_out()
    go_on(world)
    assert "TTFT p95" in world.condition("Rollout")["message"]


def test_a_miss_that_was_there_before_does_not_take_a_roll_out_back(crowded):
    world = crowded
    for _ in range(4):
        go_on(world, seconds=60, ttft=0.9)
        if read_note(world.target()) is not None:
            break
    note = read_note(world.target())
    if note is None:
        pytest.skip("the guard found capacity enough without other arguments")
    assert not note.slo_was_met
    world.rolled_out()
    go_on(world, ttft=0.9)
    go_on(world, seconds=120, ttft=0.9)
    assert "--max-num-seqs=256" in world.container()["args"]


def test_arguments_changed_by_hand_meanwhile_stay(crowded):
    world = crowded
    begin(world)
    mine = [*ARGS, "--enable-prefix-caching"]
    container = {**world.container(), "args": mine}
    world.patch("deployments", "chat", {"spec": {"template": {"spec": {"containers": [container]}}}}, manager="kubectl")
    world.rolled_out()
    for _ in range(3):
        go_on(world, seconds=700, ttft=0.9)
    assert world.container()["args"] == mine
    assert ANNOTATION not in world.target()["metadata"].get("annotations", {})
    found = world.condition("Conflict")
    assert (found["status"], found["reason"]) == ("True", "FieldOwnedByOther")
    assert "kubectl set spec.template.spec.containers.args after us" in found["message"]
    for _ in range(2):
        go_on(world, seconds=50_000)
    assert world.said("Conflict") == ("False", "NoConflict")


def test_bad_arguments_that_are_taken_out_of_the_lever_are_forgotten(crowded):
    world = crowded
    begin(world)
    state = world.operator.loop.states[world.namespace, "chat"]
    world.rolled_out()
    go_on(world)
    go_on(world, seconds=120, ttft=0.9)
    world.rolled_out()
    go_on(world)
    go_on(world)
    assert state.bad_engines
    world.change(levers={**LEVERS, "engine": {"maxNumSeqs": [128]}})
    go_on(world)
    assert state.bad_engines == []
    assert not world.status()["memory"].get("badEngines")


def test_a_roll_out_that_would_wait_for_ever_is_not_begun(world):
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    world.settings["namespaces"] = ()
    world.restart()
    world.add_node(gpus=2)
    body = deployment(world.namespace, "chat", replicas=2, pool=world.node, args=ARGS)
    body["spec"]["strategy"] = strategy
    world.deploy(body)
    world.report_agent()
    world.measure(rate=9.0)
    world.create(service(world.namespace, levers=LEVERS))
    for _ in range(3):
        go_on(world, seconds=60)
    free = world.operator.loop.resolver.resolve_all(
        [world.kube.get(world.path("inferenceservices", "chat"))], now_seconds=world.now()
    )[0][0].free_gpus
    if free:
        pytest.skip("other tests left free GPUs of the same product on this cluster")
    assert world.said("Rollout") == ("False", "RolloutNeedsFreeGpus")
    assert world.container()["args"] == ARGS


def test_a_roll_out_of_somebody_else_that_is_stuck_is_told(crowded):
    world = crowded
    world.change(levers={"replicas": {"min": 1, "max": 2}})
    world.cordon()
    container = {**world.container(), "image": "vllm/vllm-openai:v0.11.1"}
    world.patch("deployments", "chat", {"spec": {"template": {"spec": {"containers": [container]}}}}, manager="kubectl")
    world.wait_for(lambda: progress(world) == "ProgressDeadlineExceeded", seconds=30)
    go_on(world)
    assert world.said("Rollout") == ("False", "Stuck")
    assert world.container()["image"].endswith("v0.11.1"), "not ours to take back"
    world.cordon(on=False)


def test_in_a_large_fleet_each_service_has_its_turn(world):
    world.settings.update(large_fleet_services=0, rollout_look_seconds=300.0)
    world.restart()
    world.add_node(gpus=4)
    world.deploy(deployment(world.namespace, "chat", replicas=2, pool=world.node, args=ARGS))
    world.report_agent()
    world.measure(rate=9.0)
    world.create(service(world.namespace, levers=LEVERS))
    for _ in range(7):
        go_on(world, seconds=60)
        if world.container()["args"] != ARGS:
            break
    assert world.container()["args"] != ARGS
