import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.evaluation import methods, score
from wattkeeper.evaluation.methods import Latencies
from wattkeeper.evaluation.points import Arrivals
from wattkeeper.evaluation.score import ArrivalClass

seconds = st.lists(st.floats(1e-3, 50.0), min_size=1, max_size=30)


def latencies(ttft, tpot=None):
    ttft = np.array(ttft, dtype=float)
    return Latencies(ttft_seconds=ttft, tpot_seconds=np.full(len(ttft), 1e-3) if tpot is None else np.array(tpot))


@given(seconds, st.sampled_from(score.MARGINS))
def test_perfect_predictions_have_no_error_and_no_false_verdict(values, margin):
    truth = latencies(values, np.array(values) / 40.0)
    assert not score.relative_errors(truth.ttft_seconds, truth.ttft_seconds).any()
    made = score.verdicts(truth, truth, margin=0.0)
    assert (made.false_met.percent, made.false_missed.percent, made.edge.percent) == (0.0, 0.0, 0.0)
    assert score.verdicts(truth, truth, margin=margin).false_met.percent == 0.0


@given(seconds)
def test_more_margin_accepts_less_and_violates_less(values):
    truth = latencies(values)
    guess = latencies(np.array(values)[::-1])
    made = [score.verdicts(guess, truth, margin=margin) for margin in score.MARGINS]
    for before, after in itertools.pairwise(made):
        assert after.false_met.of <= before.false_met.of
        assert after.false_missed.percent >= before.false_missed.percent
        assert after.edge.percent <= before.edge.percent


def test_verdicts_count_pairs_of_targets():
    # Truth 0.3 s meets four of the five TTFT targets and, at 1 ms, all four TPOT targets; 0.7 s meets three.
    made = score.verdicts(latencies([0.3]), latencies([0.7]), margin=0.0)
    assert made.false_met.of == 16
    assert made.false_met.percent == pytest.approx(100 * 4 / 16)
    assert made.false_missed.percent == 0.0
    assert made.edge.percent == 100.0
    made = score.verdicts(latencies([0.7]), latencies([0.3]), margin=0.0)
    assert made.false_met.percent == 0.0
    assert made.false_missed.percent == pytest.approx(100 * 4 / 16)


def test_no_steady_state_is_a_rejection_and_a_capped_error():
    made = score.verdicts(latencies([np.inf]), latencies([0.1]), margin=0.0)
    assert made.false_met.of == 0
    assert made.false_missed.percent == 100.0
    assert score.relative_errors(np.array([np.inf]), np.array([1.0]))[0] == pytest.approx(99.0)


def test_unknown_truth_is_left_out():
    assert len(score.relative_errors(np.array([1.0, 2.0]), np.array([np.nan, 1.0]))) == 1
    made = score.verdicts(latencies([9.0, 0.1]), latencies([np.nan, 0.1]), margin=0.0)
    assert made.edge.of == 1


def test_spread_is_in_percent_and_inside_its_interval():
    found = score.spread(np.abs(np.random.default_rng(0).normal(0.0, 0.1, 200)))
    assert found.count == 200
    assert found.median_interval[0] < found.median < found.median_interval[1]
    assert found.p90_interval[0] < found.p90 < found.p90_interval[1]
    assert 5.0 < found.median < 9.0
    assert score.spread(np.array([])) is None


def test_share_of_nothing_is_zero():
    assert score.share(np.zeros(3), np.zeros(3)).of == 0


def of_kind(run, kind, index):
    return replace(
        run,
        point=replace(run.point, arrivals=Arrivals(kind=kind), requests=40_000),
        workload=replace(
            run.workload,
            requests_per_second=10.0,
            dispersion=Dispersion(windows_seconds=(0.1, 1.0, 100.0), index=index),
        ),
    )


@pytest.mark.parametrize(
    ("kind", "index", "expected"),
    [
        ("poisson", (1.0, 1.1, 1.6), ArrivalClass.POISSON),  # 40 windows of 100 s tell no more
        ("gamma", (0.9, 0.4, 0.2), ArrivalClass.POISSON),
        ("on-off", (1.0, 1.8, 3.0), ArrivalClass.BURSTY),
        ("batches", (5.0, 5.0, 5.0), ArrivalClass.BURSTY),
        ("recorded", (1.0, 1.0, 1.0), ArrivalClass.RECORDED),
    ],
)
def test_class_of_arrivals(small_runs, kind, index, expected):
    assert score.arrival_class(of_kind(small_runs[0], kind, index)) is expected


def test_truth_is_what_runs_say(small_runs):
    real = methods.truth(small_runs, 95.0)
    assert real.ttft_seconds[0] == small_runs[0].ttft_seconds[3]
    assert real.worse(latencies(np.full(len(small_runs), 1e9))).ttft_seconds.min() == 1e9
