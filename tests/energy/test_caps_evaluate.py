import numpy as np
import pytest

from wattkeeper.energy import caps, caps_evaluate, clocks_evaluate
from wattkeeper.energy.caps import CapCurve, CapFacts

CAPS = np.linspace(150.0, 550.0, 9)


def curve(card, number, share):
    facts = CapFacts(
        curve=f"{card} {number}", gpu=card, model="Qwen3.6-27B", tdp_watts=600.0,
        highest_cap_watts=600.0, prefill=number % 2 == 1, moe=False, concurrency=8.0,
        uncapped_watts=None,
    )  # fmt: skip
    knee = np.array([np.log(share), np.log(0.8)])
    return CapCurve(facts=facts, cap_watts=CAPS, relative=caps.relative(CAPS / 600.0, knee, 12.0))


def test_intervals_for_a_card_never_seen_are_wider_than_for_another_curve_of_a_known_one():
    cards = {"RTX3090": 0.4, "RTX4090": 0.6, "RTX5090": 0.8}
    train = [curve(card, number, share) for card, share in cards.items() for number in range(2)]
    by_curve, by_card = (caps_evaluate._scales(train, group, seed=0) for group in
                         (caps_evaluate._curve_of, caps_evaluate._card_of))  # fmt: skip
    assert set(by_card) == {"cold", "+1 random", "+1 designed", "+2 random", "+2 designed"}
    assert by_card["cold"] > by_curve["cold"]


def test_no_baseline_is_faster_than_without_a_limit_and_rows_know_their_limit():
    known = [curve("RTX3090", 0, 0.5), curve("RTX3090", 1, 0.7), curve("RTX4090", 0, 0.6)]
    found = caps_evaluate._split(known, "unseen curve", caps_evaluate._curve_of, seed=0, floor=99.0)
    for held in found:
        assert all(values.max() <= 1.0 for values in held.predicted.values())
        assert held.x is not None
        assert set(held.x) <= set(CAPS)
        assert held.notes[0].startswith("more than 2 % too fast: knee ")
        assert "slowest" not in held.predicted


def test_the_law_of_limits_is_the_law_of_clocks_at_the_watts_they_leave():
    facts = curve("a", 0, 0.5).facts
    throughput, watts = caps.at_clock(facts, np.array([0.5, 0.8, 1.0]))
    assert caps.law(facts, 600.0 * watts) == pytest.approx(throughput, abs=1e-3)
    assert (throughput[-1], watts[-1]) == pytest.approx((1.0, 1.0))


def test_locked_clocks_are_relative_to_the_highest_one(data_folder):
    found = clocks_evaluate.held_out(data_folder, report=lambda _: None)
    assert [held.target for held in found] == [clocks_evaluate.THROUGHPUT] * 4 + [clocks_evaluate.WATTS] * 4
    top = found[0]
    assert top.split.endswith("memory at 14001 MHz")
    assert top.x is not None
    assert list(top.x) == [180, 667, 1147, 1635, 2122, 2602]
    assert top.measured[-1] == pytest.approx((716.51 + 878.75) / (805.21 + 965.95))
