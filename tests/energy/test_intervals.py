import numpy as np
import pytest

from wattkeeper.energy import intervals


def test_each_group_counts_once_whatever_its_rows():
    small = np.repeat(0.1, 900)
    large = np.repeat(1.0, 20)
    members = np.concatenate([np.repeat("big", 900), [f"group {number}" for number in range(20)]])
    assert intervals.by_unit(np.concatenate([small, large]), members) == 1.0


def test_nine_of_ten_groups_and_half_of_one_to_come_are_inside():
    misses = np.arange(1.0, 21.0)
    assert intervals.by_unit(misses, [f"group {number}" for number in range(20)]) == 19.0


def test_a_whole_group_to_come_takes_a_place_of_its_own():
    misses, members = np.repeat(np.arange(1.0, 20.0), 3), np.repeat([f"group {number}" for number in range(19)], 3)
    assert intervals.by_unit(misses, members, groups_to_come=intervals.WHOLE) == 18.0  # 18 of 20


@pytest.mark.parametrize(("few", "to_come"), [(4, intervals.HALF), (9, intervals.WHOLE)])
def test_the_largest_miss_is_taken_up_to_some_groups(few, to_come):
    """With a group more, part of the worst group's hundred rows may be outside."""

    def width(groups: int) -> float:
        others = [f"group {number}" for number in range(groups - 1)]
        misses = np.concatenate([np.zeros(groups - 1), np.arange(1.0, 101.0)])
        return intervals.by_unit(misses, [*others, *100 * ["worst"]], groups_to_come=to_come)

    assert width(few) == 100.0
    assert width(few + 1) < 100.0


def test_with_few_groups_it_is_the_largest_miss():
    assert intervals.by_unit(np.array([0.1, 0.3, 0.2]), ["a", "b", "c"]) == 0.3


def test_no_groups_are_refused():
    with pytest.raises(ValueError, match="at least one group"):
        intervals.by_unit(np.array([]), [])


def test_a_new_group_is_held_in_nine_of_ten():
    """Groups with a level of their own: rows alone would be too sure."""
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        members = np.repeat(np.arange(15), rng.integers(3, 40, 15)).astype(np.str_)
        levels = rng.normal(size=16)
        misses = np.abs(levels[members.astype(int)] + 0.3 * rng.normal(size=len(members)))
        width = intervals.by_unit(misses, members)
        inside.append(np.mean(np.abs(levels[15] + 0.3 * rng.normal(size=50)) <= width))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.04)


def test_units_are_what_folds_hold_out_together():
    groups = np.array(
        [["m1", "b1", "t", "c1"], ["m1", "b1", "u", "c2"], ["m2", "b1", "t", "c3"], ["m3", "b2", "u", "c4"]]
    )
    assert (intervals.units(groups, np.array([0, 0, 0, 1])) == groups[:, 1]).all()
    assert (intervals.units(groups, np.array([0, 0, 1, 1])) == groups[:, 0]).all()
    assert (intervals.units(groups, np.array([0, 1, 2, 3])) == groups[:, 3]).all()
