import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.energy import caps
from wattkeeper.energy.caps import CapCurve, CapFacts, CapModel

CAPS = np.array([200.0, 250.0, 300.0, 350.0, 400.0])


def facts(curve="a", *, gpu="x", tdp=400.0, prefill=False, watts=380.0):
    return CapFacts(
        curve=curve,
        gpu=gpu,
        model="m",
        tdp_watts=tdp,
        highest_cap_watts=tdp,
        prefill=prefill,
        moe=False,
        concurrency=8.0,
        uncapped_watts=watts,
    )


def made(curve, knee_share, *, steepness=1.0, gpu="x"):
    known = facts(curve, gpu=gpu)
    law = np.array([np.log(knee_share), np.log(steepness)])
    return CapCurve(facts=known, cap_watts=CAPS, relative=caps.relative(CAPS / known.reference_watts, law, 12.0))


def test_the_law_falls_with_the_limit_and_prompts_fall_sooner():
    decode, prefill = (caps.law(facts(prefill=each), CAPS) for each in (False, True))
    assert (np.diff(decode) >= 0).all()
    assert (np.diff(prefill) >= 0).all()
    assert (prefill <= decode + 1e-9).all()
    assert decode[-1] == pytest.approx(1.0)


@given(knee=st.floats(0.4, 1.1), steepness=st.floats(0.3, 2.5), sharpness=st.sampled_from([4.0, 12.0, 40.0]))
def test_relative_throughput_is_a_share_and_rises_with_the_limit(knee, steepness, sharpness):
    shares = np.linspace(0.3, 1.5, 30)
    found = caps.relative(shares, np.log([knee, steepness]), sharpness)
    assert (found > 0).all()
    assert (found <= 1).all()
    assert (np.diff(found) >= -1e-12).all()


def test_a_known_card_is_foreseen_better_than_by_the_law_alone():
    model = CapModel([made("a", 0.92), made("b", 0.93), made("c", 0.91)])
    asked = made("d", 0.92)
    learnt = np.abs(np.log(model.knee(asked.facts).relative(CAPS) / asked.relative)).mean()
    law = np.abs(np.log(caps.law(asked.facts, CAPS) / asked.relative)).mean()
    assert learnt < 0.4 * law


def test_readings_pull_towards_themselves_and_narrow():
    model = CapModel([made("a", 0.70), made("b", 0.72), made("c", 0.74)])
    asked = made("d", 0.95, steepness=1.4, gpu="y")
    cold, warm = model.knee(asked.facts), model.knee(asked.facts, asked.take(np.array([0, 2])))

    def width(knee):
        low, high = knee.quantiles(CAPS, (0.05, 0.95))
        return (high - low).mean()

    def miss(knee):
        return np.abs(knee.relative(CAPS) / asked.relative - 1.0).mean()

    assert miss(warm) < 0.3 * miss(cold)
    assert width(warm) < 0.5 * width(cold)


def test_an_unknown_card_is_planned_slower_than_expected():
    model = CapModel([made("a", 0.70), made("b", 0.9, gpu="y"), made("c", 0.8, gpu="z")])
    knee = model.knee(facts("new", gpu="new"))
    assert (knee.slowest(CAPS) < knee.relative(CAPS)).all()


def test_no_curves_no_model():
    with pytest.raises(ValueError, match="at least one curve"):
        CapModel([])
