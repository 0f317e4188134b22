"""The explanation tells the same decision as the plan, with the candidates beside it."""

from tests.planner.fakes import CLOCK_LEVERS, ENGINE_LEVERS, FakeEnergy, observation, predict, request
from wattkeeper.domain.observation import MetricsState
from wattkeeper.planner.explain import explain
from wattkeeper.planner.plan import plan
from wattkeeper.planner.types import PlannerSettings

SETTINGS = PlannerSettings(margin_base=0.1)


def text(**changes):
    asked = request(**changes)
    found = plan([asked], energy=FakeEnergy(), settings=SETTINGS, predict=predict)[0]
    told = explain(asked, energy=FakeEnergy(), settings=SETTINGS, predict=predict)
    assert found.message in told and found.reason.value in told and found.binding.value in told
    return told


def test_candidates_by_lever():
    told = text(rate=40.0, replicas=6, levers=ENGINE_LEVERS, rollout_allowed=True)
    for title in ("by replicas", "by power limits", "by engine arguments", "runner-up", "max_num_batched_tokens=2048"):
        assert title in told
    assert "feasible" in told and "nan" not in told


def test_what_is_not_feasible_says_why():
    told = text(rate=23.0, replicas=4, levers=CLOCK_LEVERS)
    assert "TPOT p95 of at most" in told and "predicted, 10% margin on top, against 50 ms" in told
    assert "  3 replicas at full power" in told
    assert "not even 12 replicas meet the SLO (Stability)" in text(rate=500.0)


def test_a_guard_needs_no_candidates():
    told = text(observation=observation(state=MetricsState.STALE, age_seconds=5.0))
    assert "by replicas" not in told and "Holding the last target" in told
