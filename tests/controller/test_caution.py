"""Limits are planned with what a service may draw: readings of the live loop reach the plan and its replays."""

import math
from types import SimpleNamespace

import pytest

from tests.controller.test_calibrations import play
from tests.controller.world import service
from tests.energy import fleet
from wattkeeper.controller import caution
from wattkeeper.controller.caution import Caution
from wattkeeper.energy.caution import Read
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


def test_an_estimated_pair_is_read_at_full_power_before_it_is_limited(world, asked):
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, mode="Recommend", model=ESTIMATED))
    world.tick()
    assert not asked[-1].power_lever
    play(world, ticks=6, watts=420.0)
    assert asked[-1].power_lever


def test_nothing_waits_for_watts_that_nobody_measures_or_for_ever():
    profile = fleet.profile(*fleet.ESTIMATED)
    unread = {"measured": True, "cap_watts": None, "seen_seconds": 60.0}
    assert Caution().waits(profile, **unread)
    for changed in ({"measured": False}, {"cap_watts": 400.0}, {"seen_seconds": 3600.0}):
        assert not Caution().waits(profile, **unread | changed)
    assert not Caution(factor=1.2).waits(profile, **unread)
    assert not Caution().waits(fleet.profile(*fleet.FITTED), **unread)


def test_readings_at_a_limit_add_to_what_was_known_and_do_not_pile_up(monkeypatch):
    profile, book = fleet.profile(*fleet.FITTED), Caution()
    found = iter([Read(factor=1.1, at_limit=False), Read(factor=1.3, at_limit=True), Read(factor=1.0, at_limit=True)])
    monkeypatch.setattr(caution, "_read", lambda *_, **__: next(found))
    service_, seen = SimpleNamespace(profile=profile), SimpleNamespace(workload=fleet.workload())
    factors = []
    for minute in range(3):
        book.look(service_, seen, object(), cap_watts=300.0, model=None, now=61.0 * minute)
        factors.append(book.factor)
    assert factors == [1.1, 1.3, 1.1]
