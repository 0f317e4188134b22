"""Moves that only save energy must have paid for the last one; what the SLO asks for never waits."""

from dataclasses import replace

import pytest

from tests.planner.fakes import LEVERS, NOW, FakeEnergy, predict, request
from wattkeeper.domain.plan import Binding
from wattkeeper.planner.plan import plan
from wattkeeper.planner.types import PlanMemory, PlannerSettings

SETTINGS = PlannerSettings(margin_base=0.1)
POWER_ONLY = replace(LEVERS, replicas=None)


def decide(**changes):
    return plan([request(**changes)], energy=FakeEnergy(), settings=SETTINGS, predict=predict)[0]


def since(**seconds):
    return PlanMemory(**{f"last_{name}_seconds": NOW - value for name, value in seconds.items()})


@pytest.mark.parametrize(("ago", "moves"), [(16.0, False), (300.0, True), (None, True)])
def test_a_small_gain_waits_longer_for_deeper_limits(ago, moves):
    best = decide(replicas=4, levers=POWER_ONLY).target.power_cap_watts
    memory = PlanMemory() if ago is None else since(cap=ago)
    found = decide(replicas=4, levers=POWER_ONLY, cap=best + 50.0, memory=memory)
    assert found.target.power_cap_watts == (best if moves else best + 50.0)
    if not moves:
        assert found.binding is Binding.HYSTERESIS and "does not pay for yet" in found.message


def test_a_large_gain_waits_less():
    assert decide(replicas=8, levers=POWER_ONLY, memory=since(cap=60.0)).target.power_cap_watts is not None


def test_more_power_for_the_slo_never_waits():
    deep = decide(replicas=4, levers=POWER_ONLY).target.power_cap_watts
    found = decide(replicas=4, levers=POWER_ONLY, cap=deep, rate=30.0, memory=since(cap=1.0))
    assert found.target.power_cap_watts is None or found.target.power_cap_watts > deep


def test_more_replicas_for_the_slo_never_wait():
    memory = since(scale_down=5.0, scale_up=5.0, cap=5.0)
    assert decide(replicas=2, rate=40.0, memory=memory).target.replicas > 2


def test_replicas_are_not_added_to_save_energy_right_after_some_went():
    """More power for those in place meets the SLO too; more replicas at less power are only cheaper."""
    settled = decide(replicas=2, rate=14.0, cap=350.0)
    held = decide(replicas=2, rate=14.0, cap=350.0, memory=since(scale_down=10.0))
    assert settled.target.replicas > 2
    assert held.target.replicas == 2
