import numpy as np
import pytest

from wattkeeper.energy import cap_beliefs
from wattkeeper.energy.cap_beliefs import SampledLaw
from wattkeeper.energy.caps import CapCurve, CapFacts

CAPS = np.arange(150.0, 400.0, 25.0)


def facts(curve="a", *, gpu="x", prefill=False, watts=360.0):
    return CapFacts(
        curve=curve,
        gpu=gpu,
        model="m",
        tdp_watts=400.0,
        highest_cap_watts=400.0,
        prefill=prefill,
        moe=False,
        concurrency=8.0,
        uncapped_watts=watts,
    )


def numbers(*, clock_share=0.3, static=0.18, bend=0.5, depth=0.6, demand=0.9):
    odds = [share / (1.0 - share) for share in (clock_share, bend, depth)]
    return np.array([np.log(odds[0]), np.log(static), np.log(odds[1]), np.log(odds[2]), np.log(demand)])


def made(curve, *, gpu="x", watts=360.0, **changed):
    known = facts(curve, gpu=gpu, watts=watts)
    truth = numbers(demand=watts / 400.0, **changed)
    return CapCurve(facts=known, cap_watts=CAPS, relative=cap_beliefs.relative(truth[None], known, CAPS)[0])


def miss(belief, curve):
    return float(np.abs(belief.quantiles((0.5,))[0] / curve.relative - 1.0).mean())


def test_the_law_rises_with_the_limit_and_is_one_where_nothing_binds():
    found = cap_beliefs.relative(numbers()[None], facts(), np.linspace(40.0, 399.0, 60))[0]
    assert (np.diff(found) >= -1e-12).all()
    assert found[-1] == pytest.approx(1.0)
    assert 0.0 < found[0] < 0.3


def test_watts_of_the_law_meet_the_limit():
    """At half clock with V = 0.76: 0.18 V + 0.72 (0.35 + 0.65 V^2) throughput, of 400 W."""
    depth = (0.76 - 0.4) / 0.6
    throughput = 1.0 / (0.3 / 0.5 + 0.7)
    watts = 400.0 * (0.18 * 0.76 + 0.72 * (0.35 + 0.65 * 0.76**2) * throughput)
    found = cap_beliefs.relative(numbers(depth=depth)[None], facts(), np.array([watts]))
    assert found[0, 0] == pytest.approx(throughput, rel=5e-3)


def test_a_fit_finds_its_curve_again():
    curve = made("a", clock_share=0.5, bend=0.6)
    found = cap_beliefs.relative(cap_beliefs.fitted(curve)[None], curve.facts, CAPS)[0]
    assert found == pytest.approx(curve.relative, rel=0.01)


def test_readings_pull_towards_themselves_and_narrow():
    law = SampledLaw([made("a"), made("b"), made("c", gpu="y")])
    asked = made("new", gpu="new", clock_share=0.85, static=0.35, bend=0.8)
    cold = law.belief(asked.facts, CAPS)
    first = cold.most_informative()
    warm = cold.after([first], asked.relative[[first]])

    def width(belief):
        low, high = belief.quantiles((0.05, 0.95))
        return (high - low).mean()

    assert miss(warm, asked) < 0.5 * miss(cold, asked)
    assert width(warm) < 0.6 * width(cold)
    assert cold.after([], np.array([])) is cold


def test_a_limit_that_hardly_binds_says_least():
    law = SampledLaw([made("a"), made("b", gpu="y")])
    belief = law.belief(facts("new", gpu="new"), CAPS)
    assert belief.most_informative() < len(CAPS) // 2
    asked = made("new", gpu="new")
    again = belief.after([0], asked.relative[[0]])
    assert again.most_informative() != 0


def test_another_curve_of_a_card_is_believed_near_the_known_ones():
    law = SampledLaw([made("a"), made("b", gpu="y", clock_share=0.8, bend=0.75)])
    spreads = []
    for gpu in ("x", "new"):
        low, high = law.belief(facts("asked", gpu=gpu), CAPS).quantiles((0.1, 0.9))
        spreads.append((high - low).mean())
    assert spreads[0] < spreads[1]


def test_a_card_at_its_limit_is_believed_to_want_more():
    law = SampledLaw([made("a"), made("b", gpu="y")])
    held, free = (law.belief(facts("asked", gpu="new", watts=watts), np.array([380.0])) for watts in (399.0, 360.0))
    assert held.quantiles((0.5,))[0, 0] < free.quantiles((0.5,))[0, 0]


def test_no_curves_or_none_with_watts_no_law():
    with pytest.raises(ValueError, match="at least one curve"):
        SampledLaw([])
    with pytest.raises(ValueError, match="uncapped watts of all"):
        SampledLaw([CapCurve(facts=facts(watts=None), cap_watts=CAPS, relative=np.ones(len(CAPS)))])
