"""A count that somebody sets after us is respected for a while, and then ours again."""

import time

from kubernetes import client

from tests.controller.world import service

HOLD_SECONDS = 2.0


def test_a_count_set_by_hand_is_ours_again_after_the_hold(world):
    world.operator.loop.resolver.conflict_hold_seconds = HOLD_SECONDS
    world.fleet(replicas=3)
    world.create(service(world.namespace, replicas=4))
    world.tick()
    assert world.target()["spec"]["replicas"] == 4
    client.AppsV1Api(world.api).patch_namespaced_deployment_scale(
        "chat", world.namespace, {"spec": {"replicas": 3}}, field_manager="kubectl"
    )
    world.tick()
    began = time.monotonic()
    conflict = world.condition("Conflict")
    assert (conflict["status"], conflict["reason"]) == ("True", "FieldOwnedByOther")
    assert "left alone until 20" in conflict["message"]
    assert world.target()["spec"]["replicas"] == 3
    time.sleep(max(0.0, HOLD_SECONDS + 1.2 - (time.monotonic() - began)))
    world.tick()
    assert world.condition("Conflict")["status"] == "False"
    assert world.target()["spec"]["replicas"] == 4
