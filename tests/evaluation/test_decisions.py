import numpy as np
import pytest

from tests.replay.played import stage, trace
from wattkeeper.evaluation import decisions
from wattkeeper.evaluation.decisions import DECIDED, PERSISTENCE, EvaluationError, Watched
from wattkeeper.replay.campaign import PlannerChoices, planner_setup
from wattkeeper.replay.play import Cell


@pytest.fixture(scope="module")
def watched():
    on = stage(replicas=3)
    setup = planner_setup(on, "wattkeeper", PlannerChoices(check=False))
    return decisions.watch(Cell(trace=trace(minutes=40.0), trace_name="test", stage=on), setup)


def test_joules_of_decisions_are_those_of_the_fleet(watched):
    assert len(watched.windows) >= 4
    for window in watched.windows:
        assert decisions.LEAST_SECONDS <= window.seconds <= decisions.WINDOW_SECONDS + 15.0
        assert 60.0 < window.measured_watts < 4 * 700.0
        assert window.low_watts <= window.predicted_watts <= window.high_watts
    ends = [window.begin_seconds + window.seconds for window in watched.windows]
    begins = [window.begin_seconds for window in watched.windows]
    assert all(begin >= end for begin, end in zip(begins[1:], ends[:-1], strict=True)), "no watt counts twice"


def test_each_window_carries_the_measured_watts_of_the_one_before(watched):
    found = decisions.held_out(watched, data="test")
    measured = [window.measured_watts for window in watched.windows]
    assert list(found.predicted[PERSISTENCE]) == measured[:-1]
    assert list(found.measured) == measured[1:]
    assert set(found.groups) == {"0"}
    error = np.abs(found.predicted[DECIDED] / found.measured - 1.0)
    assert error.mean() < 0.3
    assert "left out" in found.notes[0]


def test_nothing_to_say_is_said():
    with pytest.raises(EvaluationError, match="no decision stood for 60 s"):
        decisions.held_out(Watched(windows=(), left_out=3), data="short")
