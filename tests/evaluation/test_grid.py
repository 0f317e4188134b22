import collections
import csv

import numpy as np
import pytest

from wattkeeper.domain.errors import DataFileError
from wattkeeper.evaluation import grid, traffic
from wattkeeper.evaluation.points import SYNTHETIC_KINDS, training_points
from wattkeeper.evaluation.traffic import Recording, Traffic
from wattkeeper.traces import formats


@pytest.fixture(scope="module")
def recorded():
    """As with a data folder: the arrivals of an hour stand in for a recording."""
    times = np.sort(np.random.default_rng(0).uniform(0.0, 3600.0, 5000))
    synthetic = traffic.synthetic(seed=0)
    return Traffic(lengths=synthetic.lengths, recordings=(Recording(name="hour", times_seconds=times),), recorded=True)


def test_design_is_balanced_in_every_factor(recorded):
    points = grid.design(recorded, points=512, seed=0).points
    kinds = collections.Counter(point.arrivals.kind for point in points)
    for kind, share in grid.KIND_SHARES.items():
        assert abs(kinds[kind] - 512 * share) <= 1.5
    for field in ("engine", "max_num_seqs"):
        counts = collections.Counter(getattr(point, field) for point in points)
        assert min(counts.values()) > 35
    assert set(collections.Counter(point.lengths.name for point in points).values()) <= {102, 103}
    quarters = np.histogram([point.load for point in points], bins=4, range=grid.LOADS)[0]
    assert set(quarters) == {128}
    assert abs(sum(point.kv_share is not None for point in points) - 0.35 * 512) < 2
    assert abs(sum(point.clock_ratio < 1.0 for point in points) - 256) < 2


def test_factors_are_not_tied_to_each_other(recorded):
    points = grid.design(recorded, points=512, seed=0).points
    columns = np.array(
        [[p.load, np.log(p.max_num_seqs), np.log(p.max_num_batched_tokens), p.hit_ratio] for p in points]
    )
    off_diagonal = np.corrcoef(columns.T)[~np.eye(4, dtype=bool)]
    assert np.abs(off_diagonal).max() < 0.35  # the budget is never below the slots, which ties these two


def test_the_same_seed_gives_the_same_points_and_another_seed_others(recorded):
    first, again, other = (grid.design(recorded, points=16, seed=seed) for seed in (1, 1, 2))
    assert [p.load for p in first.points] == [p.load for p in again.points]
    assert [p.load for p in first.points] != [p.load for p in other.points]
    assert not {p.seed for p in first.points} & {p.seed for p in other.points}


def test_limits_are_ones_that_an_engine_accepts(recorded):
    for point in grid.design(recorded, points=128, seed=0).points:
        assert point.max_num_batched_tokens >= point.max_num_seqs
        assert 0.5 <= point.clock_ratio <= 1.0
        assert 0.3 <= (point.kv_share or 1.0) <= 1.2


def test_recorded_paths_do_not_repeat_themselves(recorded):
    made = grid.design(recorded, points=64, seed=0)
    assert made.recordings
    for point in made.points:
        if point.name in made.recordings:
            assert point.requests == 5000
            assert len(made.arrivals_of(point.name)) == 5000
        else:
            assert made.arrivals_of(point.name) is None


def test_without_data_nothing_is_recorded_and_it_says_so():
    source = traffic.synthetic(seed=0)
    assert not source.recorded
    kinds = {p.arrivals.kind for p in grid.design(source, points=64, seed=0).points}
    assert kinds == set(SYNTHETIC_KINDS) - {"mixed"}, "only training has arrivals that mix two processes"


def test_recorded_arrivals_and_catalogue_engines_are_not_in_training():
    training = training_points(200, seed=0)
    assert "recorded" not in {point.arrivals.kind for point in training}
    assert not {point.iteration for point in training} & {engine.profile.iteration for engine in grid.ENGINES}
    assert not {point.seed for point in training} & {
        point.seed for point in grid.design(traffic.synthetic(seed=0), points=64, seed=0).points
    }


def test_detrending_removes_slow_changes_and_keeps_fast_ones_and_the_mean():
    rng = np.random.default_rng(1)
    # Twice the rate in the second half, and pairs at the same instant throughout.
    singles = np.sort(np.concatenate([rng.uniform(0, 1800, 2000), rng.uniform(1800, 3600, 4000)]))
    times = np.repeat(singles, 2)
    flat = traffic.detrended(times)
    assert np.all(np.diff(flat) >= 0.0)
    assert flat[-1] - flat[0] == pytest.approx(times[-1] - times[0], rel=0.01)
    halves = np.histogram(flat, bins=2, range=(flat[0], flat[-1]))[0]
    assert abs(halves[0] - halves[1]) < 0.03 * len(times)
    assert np.mean(np.diff(flat) == 0.0) == pytest.approx(0.5, abs=0.01)


def test_sharegpt_lengths_are_read_in_pairs(tmp_path):
    path = tmp_path / "lengths.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["num_prefill_tokens", "num_decode_tokens", "other"], [18, 243, 1], [0, 7, 1]])
    found = formats.sharegpt(path)
    assert found.prompt_tokens.tolist() == [18, 1]
    assert found.output_tokens.tolist() == [243, 7]


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "num_prefill_tokens,num_decode_tokens\n1,x\n",
                                     "num_prefill_tokens,num_decode_tokens\n"])  # fmt: skip
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "lengths.csv"
    path.write_text(content)
    with pytest.raises(DataFileError):
        formats.sharegpt(path)


def test_missing_files_are_a_domain_error(tmp_path):
    with pytest.raises(DataFileError):
        formats.sharegpt(tmp_path / "none.csv")
