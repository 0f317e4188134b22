import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planner.fakes import LEVERS, FakeEnergy, predict, request
from wattkeeper.planner import front
from wattkeeper.planner.plan import examine
from wattkeeper.planner.types import PlannerSettings

SETTINGS = PlannerSettings()


def shown(**changes):
    energy = FakeEnergy()
    found = examine([request(levers=LEVERS, **changes)], energy=energy, settings=SETTINGS, predict=predict)[0]
    return found, front.options(found.search, energy=energy, planned=found.plan.target)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40),
)
def test_no_row_of_the_front_is_beaten_and_every_other_is(values):
    table = np.array(values, dtype=float)
    best = front.not_dominated(table)
    assert best.any()
    for index, row in enumerate(table):
        beaten = ((table <= row).all(axis=1) & (table < row).any(axis=1)).any()
        assert best[index] == (not beaten)


def test_plan_and_place_are_among_the_options_once():
    found, options = shown(replicas=6)
    assert [each.replicas for each in options if each.in_place] == [6]
    planned = [each for each in options if each.planned]
    assert [each.replicas for each in planned] == [found.plan.target.replicas]
    assert planned[0].feasible
    assert planned[0].watts == found.plan.prediction.power_watts


def test_options_are_sorted_by_watts_and_tell_why_not():
    _, options = shown(replicas=6)
    assert [each.watts for each in options] == sorted(each.watts for each in options)
    assert all(each.feasible != bool(each.why_not) for each in options)
    assert {each.replicas for each in options} >= set(range(1, 13)), "every replica count is shown"
    assert any(not each.examined for each in options) and any(each.examined for each in options)


def test_nothing_feasible_is_cheaper_than_the_plan_by_more_than_the_hysteresis():
    found, options = shown(replicas=3)
    cheapest = min(each.watts for each in options if each.feasible and each.examined)
    assert found.plan.prediction.power_watts <= cheapest * (1.0 + 2 * SETTINGS.hysteresis_ratio)
