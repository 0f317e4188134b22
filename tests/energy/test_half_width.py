import numpy as np
import pytest

from wattkeeper.energy import half_width
from wattkeeper.energy.baselines import Rows


def rows(target):
    one = np.ones((len(target), 1))
    return Rows(
        scaled=one, raw=one, plain=(0,), target=np.asarray(target), estimate=one[:, 0], hardware=one[:, 0],
    )  # fmt: skip


def always_one(_train, test, _seed):
    return np.ones(len(test))


def test_nine_in_ten_misses_lie_within():
    misses = np.linspace(-1.0, 1.0, 201)
    found = half_width.half_width(rows(np.exp(misses)), always_one, np.arange(201) % 4, seed=0)
    assert found == pytest.approx(0.9, abs=0.01)


def test_rows_are_foreseen_from_other_folds_alone():
    fold = np.repeat([0, 1, 2], 10)

    def mean(train, test, _seed):
        return np.full(len(test), train.target.mean())

    levels = np.array([1.0, 2.0, 3.0])[fold]
    # Foreseen as 2.5, 2 and 1.5: two thirds of the misses are ln 2 or more.
    found = half_width.half_width(rows(levels), mean, fold, seed=0)
    assert found == pytest.approx(np.log(2.5))
    # A single fold holds nothing out by group: every second row is foreseen from the rest.
    assert half_width.half_width(rows(np.full(30, 2.0)), mean, np.zeros(30, dtype=int), seed=0) == pytest.approx(0.0)
