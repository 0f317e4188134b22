"""The loop end to end over an API server: what it decides reaches the cluster, and its reasons reach the status."""

from tests.controller.world import service


def test_a_busy_fleet_gets_a_plan_a_cap_and_a_whole_status(world):
    world.fleet(replicas=3, rate=4.0)
    world.create(service(world.namespace))
    world.tick(2)
    status = world.status()
    assert world.condition("TargetResolved")["status"] == "True"
    assert world.condition("MetricsAvailable")["status"] == "True"
    assert world.condition("Ready")["status"] == "True"
    assert status["observed"]["qps"] == 12.0
    assert status["plan"]["reason"]
    assert status["applied"]["replicas"] == 3
