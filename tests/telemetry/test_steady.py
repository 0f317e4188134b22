"""The cutter: every interval has one place, windows are steady, and what is not steady is in none."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.telemetry import steady
from wattkeeper.telemetry.steady import Lengths, Level

STEP = 30.0


def level(values, spread=0.2, drift=0.1, name="batch"):
    return Level(name=name, values=np.asarray(values, dtype=float), most_spread=spread, most_drift=drift)


def cut(values, broken=None, lengths=None, **bounds):
    values = np.asarray(values, dtype=float)
    broken = [None] * len(values) if broken is None else broken
    return steady.cut(np.full(len(values), STEP), [level(values, **bounds)], broken, lengths=lengths)


def noisy(mean, size, seed=0, share=0.05):
    return mean * (1.0 + share * np.random.default_rng(seed).standard_normal(size))


def test_a_constant_load_is_cut_into_windows_of_the_longest_length():
    found = cut(noisy(20.0, 90))
    assert found.windows == ((0, 30), (30, 60), (60, 90))
    assert found.left_out == ()


def test_a_step_is_in_no_window():
    found = cut(np.concatenate((noisy(10.0, 40), noisy(40.0, 40))))
    assert all(stop <= 41 or start >= 39 for start, stop in found.windows)
    assert {each.reason for each in found.left_out} <= {steady.UNSTEADY, steady.SHORT}
    assert sum(stop - start for start, stop in found.windows) > 60


def test_a_ramp_is_not_steady_even_though_it_spreads_little():
    slope = np.linspace(10.0, 14.0, 20)  # spread 10 %, drift 33 %
    assert cut(np.tile(slope, 1), lengths=Lengths(least_seconds=600.0)).windows == ()
    assert cut(noisy(12.0, 20, share=0.1), lengths=Lengths(least_seconds=600.0)).windows == ((0, 20),)


def test_after_an_interruption_the_replica_settles():
    broken = [None] * 20 + ["restart"] * 2 + [None] * 20
    found = cut(noisy(20.0, 42), broken)
    assert found.windows == ((0, 20), (24, 42))
    assert [(each.start, each.stop, each.reason) for each in found.left_out] == [
        (20, 22, "restart"), (22, 24, steady.SETTLING),
    ]  # fmt: skip


def test_too_short_between_interruptions():
    broken = ["gap"] * 5 + [None] * 9 + ["gap"] * 5
    found = cut(noisy(20.0, 19), broken)
    assert found.windows == ()
    assert [each.reason for each in found.left_out] == ["gap", steady.SETTLING, steady.SHORT, "gap"]


def test_a_level_that_is_not_measured_says_nothing():
    values = noisy(20.0, 30)
    found = steady.cut(
        np.full(30, STEP), [level(values), level(np.full(30, np.nan), name="clock")], [None] * 30
    )  # fmt: skip
    assert found.windows == ((0, 30),)
    assert steady.cut(np.array([]), [level([])], []) == steady.Cut(windows=(), left_out=())


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(0, 120),
    share=st.sampled_from([0.0, 0.05, 0.3]),
    breaks=st.lists(st.tuples(st.integers(0, 119), st.integers(1, 12)), max_size=5),
    least=st.sampled_from([60.0, 300.0]),
)
def test_every_interval_has_exactly_one_place(seed, size, share, breaks, least):
    rng = np.random.default_rng(seed)
    values = 20.0 * np.exp(np.cumsum(0.05 * rng.standard_normal(size))) * (1.0 + share * rng.uniform(-1, 1, size))
    seconds = rng.uniform(20.0, 40.0, size)
    broken = [None] * size
    for at, length in breaks:
        broken[at : at + length] = ["gap"] * len(broken[at : at + length])
    lengths = Lengths(least_seconds=least, least_intervals=5, most_seconds=900.0, settle_seconds=60.0)
    found = steady.cut(seconds, [level(values)], broken, lengths=lengths)
    places = [index for start, stop in found.windows for index in range(start, stop)]
    places += [index for each in found.left_out for index in range(each.start, each.stop)]
    assert sorted(places) == list(range(size))
    for each in found.left_out:
        assert {broken[index] for index in range(each.start, each.stop)} == {
            each.reason if each.reason == "gap" else None
        }
    for start, stop in found.windows:
        assert all(reason is None for reason in broken[start:stop])
        length, inside = seconds[start:stop].sum(), values[start:stop]
        assert stop - start >= 5
        assert least - 1e-6 <= length <= max(900.0, least + 40.0, 5 * 40.0)
        mean = np.average(inside, weights=seconds[start:stop])
        spread = np.sqrt(np.average((inside - mean) ** 2, weights=seconds[start:stop])) / mean
        assert spread <= 0.2 + 1e-9
        middle = np.cumsum(seconds[start:stop]) - seconds[start:stop] / 2
        slope = np.polyfit(middle, inside, 1, w=np.sqrt(seconds[start:stop]))[0]
        assert abs(slope) * length / mean <= max(0.1, 2 * spread * np.sqrt(12 / (stop - start))) + 1e-6


def test_far_into_a_long_history_windows_are_judged_as_at_its_beginning():
    size, days = 240, 300
    broken = ["gap"] + [None] * (size - 1)
    found = cut(np.tile(noisy(20.0, size, share=0.12), days), broken * days)
    days_of = [[(a - size * day, b - size * day) for a, b in found.windows if a // size == day] for day in range(days)]
    assert len(days_of[0]) > 5
    assert all(day == days_of[0] for day in days_of)


def test_zeros_are_not_steady():
    assert cut(np.zeros(20)).windows == ()
