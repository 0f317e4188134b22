"""The latency margin: learned quickly where a prediction was too hopeful, given back slowly."""

import pytest

from tests.controller.world import service


def state(world):
    return world.operator.loop.states[world.namespace, "chat"]


@pytest.fixture
def busy(world):
    world.fleet(replicas=3, rate=4.0)
    world.create(service(world.namespace, mode="Recommend"))  # the fleet stays as it is
    world.tick()
    return world


def test_a_latency_above_the_prediction_widens_the_margin(busy):
    before = state(busy).latency_margin
    busy.measure(rate=4.0, tpot=0.045)
    for _ in range(3):
        state(busy).accounted_until -= 60.0
        busy.tick()
    assert state(busy).latency_margin > max(before, 0.2)


def test_a_margin_is_given_back_over_hours(busy):
    busy.measure(rate=4.0, tpot=0.045)
    for _ in range(3):
        state(busy).accounted_until -= 60.0
        busy.tick()
    wide = state(busy).latency_margin
    busy.measure(rate=4.0, tpot=0.009, ttft=0.009)
    busy.tick()
    assert state(busy).latency_margin == pytest.approx(wide, rel=0.02)
    state(busy).accounted_until -= 3600.0
    busy.tick()
    assert state(busy).latency_margin == pytest.approx(wide / 2, rel=0.02)


def test_what_a_coarse_bucket_hides_is_no_evidence(busy):
    busy.measure(rate=4.0, ttft=0.02, tpot=0.0101)  # a little over a bound: interpolation reads almost the next one
    state(busy).latency_margin = 0.0
    for _ in range(3):
        state(busy).accounted_until -= 60.0
        busy.tick()
    assert busy.status()["observed"]["tpot"] == "19.5ms"
    assert state(busy).latency_margin < 0.15
