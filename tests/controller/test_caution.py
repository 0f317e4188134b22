"""Limits are planned with what a service may draw: readings of the live loop reach the plan and its replays."""

import math
from types import SimpleNamespace

import pytest

from tests.controller.test_calibrations import NAME, kept, play, profile
from tests.controller.test_power import CAP_ONLY
from tests.controller.world import reading, service
from tests.energy import fleet
from wattkeeper.controller import caution
from wattkeeper.controller.caution import Caution
from wattkeeper.controller.full_power import FullPowerReadings
from wattkeeper.energy.caution import Read
from wattkeeper.planner import plan as planning

ESTIMATED = "Qwen/Qwen3-8B"
DRAWN_WATTS = 640.0


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


@pytest.fixture
def looks(monkeypatch):
    """Factors after one look a minute at these readings: (factor, at the limit)."""

    def look(found, *, read=None, pair=fleet.FITTED):
        answers = iter([Read(factor=factor, at_limit=at_limit) for factor, at_limit in found])
        monkeypatch.setattr(caution, "_read", lambda *_, **__: next(answers))
        service_ = SimpleNamespace(profile=fleet.profile(*pair), key=("llm", "chat"))
        seen, book, read = SimpleNamespace(workload=fleet.workload()), Caution(), read or FullPowerReadings()
        factors = []
        for minute in range(len(found)):
            when = {"now": 61.0 * minute, "wall": 61.0 * minute}
            book.look(service_, seen, object(), read=read, cap_watts=300.0, model=None, **when)
            factors.append(book.factor)
        return factors

    return look


def test_readings_at_a_limit_add_to_what_was_known_and_do_not_pile_up(looks):
    assert looks([(1.1, False), (1.3, True), (1.0, True)]) == [1.1, 1.3, 1.1]


def test_readings_that_a_limit_may_have_held_a_moment_ago_do_not_count_as_free(looks):
    lifted = [(1.0, True), (1.0, False), (1.0, False), (1.0, False), (1.2, False)]
    assert looks([(1.4, False), *lifted]) == [1.4, 1.4, 1.4, 1.4, 1.0, 1.2]
    assert looks(lifted, pair=fleet.ESTIMATED)[:3] == [math.inf] * 3


def play_limited(world, ticks):
    """Busy replicas that draw what they want, or the limit in force."""
    for index in range(ticks):
        world.advance(15.0)
        world.report_agent()
        limit = min((watts for watts in world.watts() if watts), default=math.inf)
        watts = min(DRAWN_WATTS, limit) * (1.0 - 0.002 * (index % 2))
        world.source.pods = {
            (world.namespace, pod): reading(world.namespace, pod, now=world.now(), watts=watts, rate=4.0)
            for pod in world.pod_names()
        }
        world.tick()


def limit_after_reading(world):
    """An estimated pair under a limit, which was read at full power before."""
    world.fleet(replicas=2, rate=4.0)
    world.create(service(world.namespace, model=ESTIMATED, levers=CAP_ONLY))
    play_limited(world, 16)
    assert world.caps()


@pytest.fixture
def limited(world):
    """With a profile that keeps what was read."""
    world.create(profile() | {"spec": {"model": ESTIMATED, "accelerator": "h100-sxm"}})
    limit_after_reading(world)
    return world


def caution_and_limit(world, asked):
    return asked[-1].profile.cap_caution, world.watts()


def test_after_a_restart_limits_are_planned_as_before(limited, asked):
    play_limited(limited, 1)
    before = caution_and_limit(limited, asked)
    assert math.isfinite(before[0])
    limited.restart()
    asked.clear()
    play_limited(limited, 1)
    assert asked[0].power_lever
    assert caution_and_limit(limited, asked) == before
    play_limited(limited, 8)
    assert caution_and_limit(limited, asked) == before


def test_without_a_profile_of_the_pair_the_service_keeps_it(world, asked):
    limit_after_reading(world)
    before = caution_and_limit(world, asked)
    assert world.status()["memory"]["calibration"]["fullPower"]["wattsFactor"] == before[0]
    world.restart()
    play_limited(world, 1)
    assert caution_and_limit(world, asked) == before


def test_it_reads_well(limited):
    (held,) = kept(limited)
    assert held["model"] == ESTIMATED
    assert held["accelerator"] == "nvidia-h100-sxm"
    assert held["gpusPerReplica"] == 1
    assert held["fullPower"].keys() == {"wattsFactor", "time", "estimate"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"accelerator": "nvidia-a100-sxm"}, "on 1 x nvidia-a100-sxm are not used"),
        ({"model": "Qwen/Qwen3-32B"}, "readings of Qwen/Qwen3-32B on"),
        ({"gpusPerReplica": 4}, "on 4 x nvidia-h100-sxm are not used"),
        ({"fullPower": {"wattsFactor": -1.0, "time": "2026-01-01T00:00:00Z"}}, "its factor is -1.0"),
        ({"fullPower": None}, ""),
    ],
)
def test_what_is_foreign_or_nonsense_leaves_the_operator_cautious(limited, asked, caplog, change, told):
    limited.stop()
    held = {name: value for name, value in (kept(limited)[0] | change).items() if value is not None}
    limited.kube.patch(limited.path("modelprofiles", NAME, sub="status"), {"status": {"calibrations": [held]}})
    limited.restart()
    asked.clear()
    play_limited(limited, 1)
    assert asked[0].profile.cap_caution == math.inf
    assert told in caplog.text


def test_another_pair_of_the_same_profile_keeps_its_readings(limited):
    limited.stop()
    (held,) = kept(limited)
    other = held | {"kvCacheDtype": "fp8"}
    limited.kube.patch(limited.path("modelprofiles", NAME, sub="status"), {"status": {"calibrations": [other, held]}})
    limited.restart()
    play_limited(limited, 8)
    assert [each["kvCacheDtype"] for each in kept(limited)] == ["auto", "fp8"]
