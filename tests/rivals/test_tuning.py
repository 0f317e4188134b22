import pytest

from wattkeeper.rivals.settings import PolicySettingsError
from wattkeeper.rivals.tuning import EVALUATIONS, tune

TARGETS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)


class Made:
    """Attainment falls with the target, energy too; counts its calls."""

    def __init__(self, limit: float = 0.3) -> None:
        self.limit = limit
        self.calls: list[dict[str, float]] = []

    def __call__(self, parameters):
        self.calls.append(dict(parameters))
        target = parameters["target"]
        window = parameters.get("window", 300.0)
        attainment = 0.995 if target <= self.limit else 0.9 - 0.01 * target
        return 1e6 / (1.0 + target) + window, attainment


def test_least_energy_among_those_that_reach_the_goal():
    made = Made(limit=0.6)
    found = tune(defaults={"target": 5.0}, grid={"target": TARGETS}, evaluate=made, goal=0.99)
    assert found.met
    assert found.parameters == {"target": 0.5}
    assert made.calls[0] == {"target": 5.0}
    assert len(made.calls) == len(found.trials) <= EVALUATIONS


@pytest.mark.parametrize("limit", [0.1, 0.3, 0.6, 1.0, 2.0, 6.0, 20.0])
def test_finds_the_edge_wherever_it_lies_with_few_evaluations(limit):
    made = Made(limit=limit)
    found = tune(defaults={"target": 5.0}, grid={"target": TARGETS}, evaluate=made, goal=0.99, evaluations=7)
    assert found.parameters["target"] == max(value for value in TARGETS if value <= limit)
    assert len(made.calls) <= 7


@pytest.mark.parametrize(("price", "best"), [(0.05, (0.6, 3.0)), (0.15, (0.3, 0.0))])
def test_gives_of_one_parameter_away_what_another_wins_back(price, best):
    """More replicas at night allow a looser target: no step along one axis alone leads from corner to corner."""
    calls = []

    def evaluate(parameters):
        calls.append(parameters)
        target, fewest = parameters["target"], parameters["min"]
        return 2.0 - target + price * fewest, 0.99 if target <= 0.3 + 0.1 * fewest + 1e-9 else 0.9

    grid = {"target": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), "min": (0.0, 1.0, 2.0, 3.0)}
    found = tune(defaults={"target": 0.4, "min": 0.0}, grid=grid, evaluate=evaluate, goal=0.95)
    assert found.met
    assert (found.parameters["target"], found.parameters["min"]) == best
    assert len(calls) == len(found.trials) <= EVALUATIONS


def test_looks_beyond_a_stretch_where_nothing_changes():
    """A target that asks for all replicas at all times is as dear with any other parameter; the edge lies further."""

    def evaluate(parameters):
        target, fewest = parameters["target"], parameters["min"]
        if target <= 4.0:
            return 10.0, 0.999
        return 8.0 + 0.1 * fewest, 0.99 if fewest >= 1.0 and target <= 16.0 else 0.7

    grid = {"target": (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0), "min": (0.0, 1.0, 2.0)}
    found = tune(defaults={"target": 2.0, "min": 0.0}, grid=grid, evaluate=evaluate, goal=0.95)
    assert found.parameters["min"] == 1.0
    assert found.energy_joules == 8.1


def test_narrowing_looks_beyond_a_stretch_where_nothing_changes():
    def evaluate(parameters):
        target = parameters["target"]
        return (10.0 + 0.001 * target if target <= 4.0 else 8.0 - 0.01 * target), 0.99 if target <= 16.0 else 0.7

    grid = {"target": (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 205.0, 256.0)}
    found = tune(defaults={"target": 2.0}, grid=grid, evaluate=evaluate, goal=0.95, evaluations=12)
    assert found.parameters == {"target": 16.0}


def test_one_parameter_after_the_other():
    made = Made(limit=0.6)
    found = tune(
        defaults={"target": 5.0, "window": 300.0},
        grid={"target": TARGETS, "window": (60.0, 300.0, 1200.0)},
        evaluate=made,
        goal=0.99,
    )
    assert found.parameters == {"target": 0.5, "window": 60.0}
    assert len(made.calls) <= EVALUATIONS
    again = Made(limit=0.6)
    tune(
        defaults={"target": 5.0, "window": 300.0},
        grid={"target": TARGETS, "window": (60.0, 300.0, 1200.0)},
        evaluate=again,
        goal=0.99,
    )
    assert again.calls == made.calls


def test_where_nothing_reaches_the_goal_the_best_attainment_is_taken_and_said():
    found = tune(defaults={"target": 5.0}, grid={"target": TARGETS}, evaluate=Made(limit=0.0), goal=0.99)
    assert not found.met
    assert found.parameters == {"target": 0.1}
    assert "no trial reached 99 %, the best attainment was taken" in found.text()


def test_defaults_win_where_they_are_best():
    found = tune(defaults={"target": 0.7}, grid={"target": TARGETS}, evaluate=Made(limit=0.8), goal=0.99, evaluations=5)
    assert found.parameters == {"target": 0.7}


def test_nothing_to_tune_is_one_run():
    made = Made()
    found = tune(defaults={"target": 0.1}, grid={}, evaluate=made, goal=0.9)
    assert len(made.calls) == 1
    assert found.text() == "target 0.1 (99.50 % on the tuning days, 1 trials)"


def test_bad_input_is_refused():
    def run(**changes):
        return tune(
            **{"defaults": {"target": 1.0}, "grid": {"target": TARGETS}, "evaluate": Made(), "goal": 0.9, **changes}
        )

    with pytest.raises(PolicySettingsError, match=r"share in 0\.\.1, not 99"):
        run(goal=99.0)
    with pytest.raises(PolicySettingsError, match="at least one evaluation"):
        run(evaluations=0)
    with pytest.raises(PolicySettingsError, match="the grid names other, which is no parameter: target"):
        run(grid={"other": (1.0,)})
    with pytest.raises(PolicySettingsError, match="must ascend: 2, 1"):
        run(grid={"target": (2.0, 1.0)})
    with pytest.raises(PolicySettingsError, match="returned nan J"):
        run(evaluate=lambda parameters: (float("nan"), 0.9))
