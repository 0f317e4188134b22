import numpy as np
import pytest

from wattkeeper.evaluation import points, runs, training
from wattkeeper.queueing import correction, features
from wattkeeper.queueing.correction import Correction

FEW = points.training_points(40, seed=3, requests=400)


@pytest.fixture(scope="module")
def rows():
    return training.rows(runs.simulate_all(FEW, processes=1))


def test_training_points_follow_from_the_seed():
    again = points.training_points(2, seed=3, requests=400)
    assert [point.arrivals for point in again] == [point.arrivals for point in FEW[:2]]
    assert np.array_equal(again[1].lengths.prompt_tokens, FEW[1].lengths.prompt_tokens)


def test_every_kind_of_arrivals_can_be_drawn():
    for point in {point.arrivals.kind: point for point in points.training_points(60, seed=5)}.values():
        times = point.arrivals.times(rate=3.0, count=500, seed=1)
        assert times.shape == (500,)
        assert np.all(np.diff(times) >= 0.0)
        assert times[0] >= 0.0


def test_rows_have_all_columns_and_no_gaps(rows):
    assert rows.tables.ttft.shape == (len(rows.run), len(features.TTFT))
    assert rows.tables.tpot.shape == (len(rows.run), len(features.TPOT))
    assert np.isfinite(rows.tables.ttft).all()
    assert np.isfinite(rows.tables.tpot).all()
    assert len(np.unique(rows.run)) > 25
    assert rows.judged.any()


def test_what_was_learnt_can_be_written_and_read(rows, tmp_path):
    path = tmp_path / "model.json.gz"
    correction.write(training.fit(rows, card={"runs": 40}), path)
    again = tmp_path / "again.json.gz"
    correction.write(training.fit(rows, card={"runs": 40}), again)
    assert path.read_bytes() == again.read_bytes()
    found = Correction.load(path).apply(rows.tables)
    assert np.isfinite(found.ttft_upper_seconds).all()
    above = rows.ttft_seconds > found.ttft_upper_seconds
    assert above.mean() < 0.25


def test_errors_are_stated_by_arrivals(rows):
    scores = training.scores(rows)
    assert {score.kind for score in scores} == set(rows.kind)
    for score in scores:
        if score.runs:
            assert 0.0 <= score.ttft[0] <= score.ttft[1]
