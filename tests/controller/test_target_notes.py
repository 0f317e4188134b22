"""What people should know of a target stands in the condition that it was found."""

from tests.controller.world import deployment, service


def test_tools_that_may_undo_changes_are_named(world):
    world.add_node()
    body = deployment(world.namespace, "chat", replicas=1, pool=world.node)
    body["metadata"]["labels"] = {"argocd.argoproj.io/instance": "chat"}
    world.deploy(body)
    world.measure()
    world.create(service(world.namespace))
    world.tick()
    found = world.condition("TargetResolved")
    assert found["status"] == "True"
    assert "Argo CD" in found["message"]
