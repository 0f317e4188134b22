"""Limits are planned with what a service may draw: readings of the live loop reach the plan and its replays."""

import math

import pytest

from tests.controller.test_calibrations import play
from tests.controller.world import service
from wattkeeper.planner import plan as planning

ESTIMATED = "Qwen/Qwen3-8B"


@pytest.fixture
def asked(monkeypatch):
    """What the planner was asked with, in order."""
    seen = []
    real = planning.plan

    def spied(requests, **kwargs):
        seen.extend(requests)
        return real(requests, **kwargs)

    monkeypatch.setattr(planning, "plan", spied)
    return seen


@pytest.mark.parametrize(("watts", "least", "most"), [(250.0, 1.0, 1.0), (600.0, 1.1, 2.0)])
def test_a_measured_pair_is_believed_unless_readings_say_more(world, asked, watts, least, most):
    world.fleet(replicas=2, rate=4.0, watts=watts)
    world.create(service(world.namespace, mode="Recommend"))
    play(world, ticks=6, watts=watts)
    assert least <= asked[-1].profile.cap_caution <= most


def test_an_estimated_pair_is_planned_at_its_rating_until_it_was_read(world, asked):
    world.fleet(replicas=2, rate=4.0, watts=None)
    world.create(service(world.namespace, mode="Recommend", model=ESTIMATED))
    world.tick()
    assert asked[-1].profile.cap_caution == math.inf
    play(world, ticks=6, watts=420.0)
    assert asked[-1].profile.cap_caution < 2.0
