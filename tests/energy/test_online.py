import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.energy.online import MIN_SAMPLES, OnlineCorrection

WATTS = st.floats(1.0, 1e5)


def _after(ratios, start: OnlineCorrection | None = None) -> OnlineCorrection:
    state = start or OnlineCorrection()
    for ratio in ratios:
        state = state.update(500.0, 500.0 * ratio)
    return state


def test_a_fresh_state_corrects_nothing_and_is_trusted():
    state = OnlineCorrection()
    assert state.factor == 1.0
    assert state.trusted
    assert state.relative_error is None


@pytest.mark.parametrize("pair", [(0.0, 1.0), (1.0, 0.0), (-1.0, 5.0), (math.nan, 1.0), (1.0, math.inf)])
def test_pairs_that_mean_nothing_change_nothing(pair):
    state = _after([1.1] * 4)
    assert state.update(*pair) is state


def test_a_steady_bias_is_learned_after_few_points():
    state = _after([1.25] * MIN_SAMPLES)
    assert state.factor == pytest.approx(1.25)
    assert state.trusted
    assert state.relative_error == pytest.approx(0.0, abs=1e-9)


def test_noise_averages_out():
    noise = np.exp(np.random.default_rng(1).normal(0.0, 0.05, 400))
    state = _after(0.9 * noise)
    assert state.factor == pytest.approx(0.9, rel=0.05)
    assert state.relative_error == pytest.approx(0.04, abs=0.025)
    assert state.trusted


def test_one_wild_reading_moves_little():
    steady = _after([1.0 + 0.01 * (-1) ** i for i in range(50)])
    assert steady.update(500.0, 5000.0).factor == pytest.approx(steady.factor, rel=0.02)
    assert steady.update(500.0, 5000.0).trusted


def test_a_large_bias_loses_trust_and_regains_it_later():
    wrong = _after([2.0] * 10)
    assert not wrong.trusted
    near = _after([1.4] * 200, start=wrong)
    assert _after([1.4] * 200).trusted and not near.trusted, "what is close to the bound does not flap"
    better = _after([1.05] * 2000, start=wrong)
    assert better.trusted
    assert better.factor == pytest.approx(1.05, rel=0.01)


def test_a_quarter_more_is_a_bias_and_no_loss_of_trust():
    settled = _after([1.0] * 500)
    states = [settled]
    for _ in range(100):
        states.append(states[-1].update(500.0, 500.0 * 1.25))
    assert all(state.trusted for state in states)


def test_a_scattered_service_is_not_trusted():
    assert not _after([0.5, 1.8] * 100).trusted


@given(pairs=st.lists(st.tuples(WATTS, WATTS), max_size=60))
def test_state_stays_bounded_and_survives_a_restart(pairs):
    state = OnlineCorrection()
    for predicted, measured in pairs:
        state = state.update(predicted, measured)
    assert 0.25 - 1e-9 <= state.factor <= 4.0 + 1e-9
    assert state.relative_error is None or state.relative_error >= 0.0
    again = OnlineCorrection.from_dict(json.loads(json.dumps(state.to_dict())))
    assert again.samples == state.samples
    assert again.trusted == state.trusted
    assert again.factor == pytest.approx(state.factor, rel=1e-4)


@pytest.mark.parametrize(
    "stored",
    [
        None,
        {},
        [],
        "x",
        {"samples": 3},
        {"samples": 3, "bias_log": 0.1, "spread_log": 0.1, "trusted": "yes"},
        {"samples": -3, "bias_log": 0.1, "spread_log": 0.1, "trusted": True},
        {"samples": 3, "bias_log": math.nan, "spread_log": 0.1, "trusted": True},
        {"samples": 3, "bias_log": 50.0, "spread_log": 0.1, "trusted": True},
        {"samples": True, "bias_log": 0.1, "spread_log": 0.1, "trusted": True},
    ],
)
def test_a_status_that_cannot_be_read_is_a_fresh_start(stored):
    assert OnlineCorrection.from_dict(stored) == OnlineCorrection()


@pytest.mark.parametrize(("scatter", "trusted"), [(0.15, True), (0.4, False)])
def test_how_much_scatter_costs_trust(scatter, trusted):
    """An average distance of a quarter (natural logarithm) to the bias is the bound."""
    state = _after([math.exp(scatter), math.exp(-scatter)] * 100)
    assert state.trusted is trusted
