from dataclasses import replace

import numpy as np
import pytest

from wattkeeper.energy import caps, caps_evaluate, caps_methods, caps_operator, clocks_evaluate
from wattkeeper.energy.caps import CapCurve, CapFacts
from wattkeeper.energy.caps_baselines import BASELINES

CAPS = np.linspace(150.0, 550.0, 9)


def curve(card, number, share):
    facts = CapFacts(
        curve=f"{card} {number}",
        gpu=card,
        model="Qwen3.6-27B",
        tdp_watts=600.0,
        highest_cap_watts=600.0,
        prefill=number % 2 == 1,
        moe=False,
        concurrency=8.0,
        uncapped_watts=580.0,
    )
    knee = np.array([np.log(share), np.log(0.8)])
    return CapCurve(facts=facts, cap_watts=CAPS, relative=caps.relative(CAPS / 600.0, knee, 12.0))


def test_intervals_for_a_card_never_seen_are_wider_than_for_another_curve_of_a_known_one():
    cards = {"RTX3090": 0.4, "RTX4090": 0.6, "RTX5090": 0.8}
    train = [curve(card, number, share) for card, share in cards.items() for number in range(2)]
    by_curve, by_card = (
        caps_methods.choose(train, group, watts_known=True, seed=0)
        for group in (caps_evaluate.curve_of, caps_evaluate.card_of)
    )
    assert set(by_card) == {"cold", "+1 random", "+1 designed", "+2 random", "+2 designed"}
    assert by_card["cold"].scale[caps_methods.KNEE] > by_curve["cold"].scale[caps_methods.KNEE]
    assert set(by_card["cold"].scale) == {*caps_methods.METHODS}


def test_the_watts_of_those_asked_about_are_hidden_where_they_are_not_known():
    known = [curve("RTX3090", 0, 0.5), curve("RTX3090", 1, 0.7), curve("RTX4090", 0, 0.6)]
    asked = known[2]
    other = replace(asked, facts=replace(asked.facts, uncapped_watts=300.0))
    blind, told = (caps_methods.CapMethods(known[:2], watts_known=each) for each in (False, True))

    def medians(model):
        return [model.belief(each).quantiles((0.5,)) for each in (asked, other)]

    np.testing.assert_array_equal(*medians(blind))
    assert not np.array_equal(*medians(told))


def test_no_method_is_faster_than_without_a_limit_and_rows_know_their_limit():
    known = [curve("RTX3090", 0, 0.5), curve("RTX3090", 1, 0.7), curve("RTX4090", 0, 0.6)]
    found = caps_evaluate._split(known, "unseen curve", caps_evaluate.curve_of, watts_known=False, seed=0, floor=99.0)
    for held in found:
        assert all(values.max() <= 1.0 + 1e-9 for values in held.predicted.values())
        assert held.x is not None
        assert set(held.x) <= set(CAPS)
        assert held.notes[0].startswith("chosen on inner folds: ")
        assert held.notes[1].startswith("more than 2 % too fast: model ")
        assert set(held.predicted) == {"model", "knee", "drawn law", *BASELINES}


def test_the_law_of_limits_is_the_law_of_clocks_at_the_watts_they_leave():
    facts = curve("a", 0, 0.5).facts
    throughput, watts = caps.at_clock(facts, np.array([0.5, 0.8, 1.0]))
    assert caps.law(facts, facts.reference_watts * watts) == pytest.approx(throughput, abs=1e-3)
    assert (throughput[-1], watts[-1]) == pytest.approx((1.0, 1.0))


def test_locked_clocks_are_relative_to_the_highest_one(data_folder):
    found = clocks_evaluate.held_out(data_folder, report=lambda _: None)
    assert [held.target for held in found] == [clocks_evaluate.THROUGHPUT] * 4 + [clocks_evaluate.WATTS] * 4
    top = found[0]
    assert top.split.endswith("memory at 14001 MHz")
    assert top.x is not None
    assert list(top.x) == [180, 667, 1147, 1635, 2122, 2602]
    assert top.measured[-1] == pytest.approx((716.51 + 878.75) / (805.21 + 965.95))


def test_the_operator_without_readings_is_not_faster_than_with_belief(data_folder):
    for known in caps_evaluate.curves(data_folder):
        unread, believing = (
            caps_operator.relative(caps_methods.hidden(known).facts, known.cap_watts, cautious=cautious)
            for cautious in (True, False)
        )
        assert (unread <= believing + 1e-3).all()
        assert unread[-1] <= 1.0 + 1e-9


def test_the_operator_is_conservative_on_cards_it_never_read(data_folder):
    """One card in four, under prompts and under one model, falls faster than the law says: docs/accuracy/energy.md."""
    fast = {}
    for known in caps_evaluate.curves(data_folder):
        planned = caps_operator.relative(caps_methods.hidden(known).facts, known.cap_watts)
        fast.setdefault(known.facts.gpu, []).append(planned / known.relative - 1.0 > 0.02)
    shares = {card: float(np.concatenate(of).mean()) for card, of in fast.items()}
    assert all(share == 0.0 for card, share in shares.items() if card != "RTX3090")
    assert shares["RTX3090"] < 0.25
