"""The on-line refit against engines whose coefficients are known."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.physics.engines import CHAT, CONVERSATION, H100, drawn_window, fold, ratios, scrapes, truth, wrong
from wattkeeper.physics import step
from wattkeeper.physics.refit import PRIOR_SPREAD, Refit, RefitStatus
from wattkeeper.physics.step_windows import StepWindow, WindowProblem

TRUE = truth()
PRIORS = [(1.4, 0.7, 1.6), (0.7, 1.4, 0.6)]
HOUR = 3600.0
LONG_ANSWERS = ((1155, 0.95), (700, 0.6))


def swing(at):
    """From 2 to 16 requests per second and back within an hour."""
    return 9.0 + 7.0 * math.sin(at / HOUR * 2 * math.pi)


@functools.cache
def hour(kind, seed, spacing):
    """(samples, lengths) of an hour of simulated traffic."""
    rate_of, lengths = {
        "steady conversation": (lambda _: 14.0, CONVERSATION),
        "swinging conversation": (swing, CONVERSATION),
        "light conversation": (lambda _: 5.0, CONVERSATION),
        "idling conversation": (lambda _: 0.5, CONVERSATION),
        "chat": (lambda at: 14.0 + 10.0 * math.sin(at / 570.0), CHAT),
        "long answers": (lambda at: 5.0 + 3.0 * math.sin(at / 570.0), LONG_ANSWERS),
    }[kind]
    return scrapes(rate_of, seconds=HOUR, lengths=lengths, seed=seed, spacing=spacing), lengths


def refitted(prior, kind, seed, spacing):
    samples, lengths = hour(kind, seed, spacing)
    return fold(Refit(prior=prior), samples, lengths=lengths)


@pytest.mark.parametrize(
    ("kind", "seed", "spacing"),
    [
        ("steady conversation", 1, 2.0),
        ("steady conversation", 2, 2.0),
        ("swinging conversation", 1, 2.0),
        ("swinging conversation", 2, 2.0),
        ("long answers", 1, 5.0),
        ("long answers", 2, 5.0),
    ],
)
@pytest.mark.parametrize("prior", PRIORS)
def test_recovers_the_coefficients_of_a_simulated_engine(kind, seed, spacing, prior):
    """Priors 30..60 % off in opposite directions end within 5 % of the truth in every term."""
    refit, _ = refitted(wrong(TRUE, *prior), kind, seed, spacing)
    found = refit.estimate()
    assert found.status is RefitStatus.IDENTIFIED
    assert found.confidence > 0.9
    assert ratios(found.iteration, TRUE) == pytest.approx(1.0, abs=0.05)
    assert found.spread < 0.02


@pytest.mark.parametrize("spacing", [5.0, 15.0])
@pytest.mark.parametrize("kind", ["swinging conversation", "light conversation", "chat"])
@pytest.mark.parametrize("prior", PRIORS)
def test_errors_stay_within_what_it_claims(prior, kind, spacing):
    """Loads that tell less: whatever it says, the truth is within 2.5 of its standard errors (plus 1 %)."""
    refit, _ = refitted(wrong(TRUE, *prior), kind, 1, spacing)
    found = refit.estimate()
    claimed = np.array([found.standard_errors[name] for name in ("d0", "dT", "dKV")])
    error = ratios(found.iteration, TRUE) - 1.0
    assert np.all(np.abs(error) <= 2.5 * claimed + 0.01)
    for row in refit.rows[:: len(refit.rows) // 20]:
        fitted = row[2:5] @ (ratios(found.iteration, refit.prior))
        assert fitted == pytest.approx(row[1], rel=0.05)
    work = {"prefill_tokens": 100.0, "decode_sequences": 20.0, "kv_tokens": 26_000.0}
    expected = float(step.step_seconds(TRUE, **work))
    assert float(step.step_seconds(found.iteration, **work)) == pytest.approx(expected, rel=0.03)
    assert found.step_error(**work) < 0.05


def test_a_single_steady_load_is_not_enough():
    """The level comes out, its division among the terms does not, and it says so."""
    rng = np.random.default_rng(1)
    refit = Refit(prior=wrong(TRUE, *PRIORS[0]))
    work = {"prefill_tokens": 300.0, "decode_sequences": 60.0, "kv_tokens": 78_000.0}
    seconds = float(step.step_seconds(TRUE, **work))
    for index in range(700):
        refit = refit.observe(
            StepWindow(
                time_seconds=5.0 * index,
                step_seconds=seconds * math.exp(0.01 * rng.normal()),
                sampled_sequences=60.0,
                spacing_seconds=0.0,
                **work,
            ),
            answer_tokens=211,
        )
    found = refit.estimate()
    assert found.status is RefitStatus.LOAD_TOO_STEADY
    assert found.weak == ("d0", "dT", "dKV")
    assert found.confidence < 0.3
    assert found.condition_number > 1e6
    assert float(step.step_seconds(found.iteration, **work)) == pytest.approx(seconds, rel=0.01)
    assert found.step_error(**work) < 0.01
    assert found.step_error(prefill_tokens=3000, decode_sequences=60, kv_tokens=78_000) > 0.1


def test_a_steady_light_load_names_the_terms_it_cannot_tell():
    refit, _ = refitted(wrong(TRUE, *PRIORS[0]), "light conversation", 1, 5.0)
    found = refit.estimate()
    assert found.status is RefitStatus.LOAD_TOO_STEADY
    assert "dKV" in found.weak
    assert "d0" not in found.weak


def test_a_nearly_idle_engine_changes_nothing():
    prior = wrong(TRUE, *PRIORS[0])
    refit, problems = refitted(prior, "idling conversation", 1, 5.0)
    found = refit.estimate()
    assert found.status is RefitStatus.TOO_FEW_WINDOWS
    assert found.iteration is prior
    assert found.confidence == 0.0
    assert found.step_error(prefill_tokens=1, decode_sequences=1, kv_tokens=1) == PRIOR_SPREAD
    assert problems[WindowProblem.IDLED] + problems[WindowProblem.LIGHT_LOAD] > 600


def windows(seed, iteration, count, *, begin=0, **options):
    rng = np.random.default_rng(seed)
    return [drawn_window(rng, 5.0 * (begin + index), iteration, **options) for index in range(count)]


def observe_all(refit, many):
    for each in many:
        refit = refit.observe(each, answer_tokens=211)
    return refit


@pytest.mark.parametrize("factors", [(1.2, 1.2, 1.2), (0.8, 0.8, 0.8), (1.2, 1.0, 1.0), (1.0, 1.2, 1.0)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_follows_a_sudden_drift_of_a_fifth(factors, seed):
    """After an hour at the old coefficients: step times within 3 % in 35 windows (three minutes at 5 s), every
    coefficient within 5 % in 180 (a quarter of an hour)."""
    after = wrong(TRUE, *factors)
    new = windows(seed + 10, after, 180, begin=720)
    refit = observe_all(Refit(prior=wrong(TRUE, *PRIORS[0])), windows(seed, TRUE, 720))
    refit = observe_all(refit, new[:35])
    early = refit.estimate()
    for n in (10.0, 40.0, 120.0):
        work = {"prefill_tokens": 6.0 * n, "decode_sequences": n, "kv_tokens": 1300.0 * n}
        expected = float(step.step_seconds(after, **work))
        assert float(step.step_seconds(early.iteration, **work)) == pytest.approx(expected, rel=0.03)
    found = observe_all(refit, new[35:]).estimate()
    assert found.confidence > 0.8
    assert found.shift != 1.0
    assert ratios(found.iteration, after) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_follows_a_drift_of_a_fifth_in_the_smallest_term(seed):
    """dKV alone is a twelfth of the step: no sudden shift to see, so forgetting has to do it, in under two hours."""
    after = wrong(TRUE, 1.0, 1.0, 1.2)
    refit = observe_all(Refit(prior=TRUE), windows(seed, TRUE, 720))
    refit = observe_all(refit, windows(seed + 10, after, 1200, begin=720))
    assert ratios(refit.estimate().iteration, after) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("seed", [1, 2])
def test_follows_a_slow_drift_of_a_fifth(seed):
    rng = np.random.default_rng(seed)
    refit = Refit(prior=TRUE)
    for index in range(2880):
        refit = refit.observe(
            drawn_window(rng, 5.0 * index, wrong(TRUE, *[1.0 + 0.2 * min(index / 2160, 1.0)] * 3)), answer_tokens=211
        )
    assert ratios(refit.estimate().iteration, wrong(TRUE, 1.2, 1.2, 1.2)) == pytest.approx(1.0, abs=0.05)


def test_a_simulated_engine_that_slows_down_by_a_fifth():
    """Counters restart with the slower engine, as after a restart of the pod."""
    slow_levels = tuple(
        dataclasses.replace(level, seconds=tuple(1.2 * each for each in level.seconds)) for level in H100.levels
    )
    before = scrapes(lambda _: 12.0, seconds=HOUR / 2, seed=3)
    after = scrapes(
        lambda _: 10.0, seconds=HOUR / 4, seed=4, engine=dataclasses.replace(H100, levels=slow_levels), begin=HOUR / 2
    )
    refit, problems = fold(Refit(prior=wrong(TRUE, *PRIORS[0])), [*before, *after])
    assert problems[WindowProblem.RESET] == 1
    found = refit.estimate()
    assert found.shift == pytest.approx(1.2, abs=0.04)
    work = {"prefill_tokens": 130.0, "decode_sequences": 40.0, "kv_tokens": 52_000.0}
    assert float(step.step_seconds(found.iteration, **work)) == pytest.approx(
        1.2 * float(step.step_seconds(TRUE, **work)), rel=0.03
    )


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_outliers_do_not_move_it(share):
    """Scrapes that fall into a stall, or into another pod's restart."""
    rng = np.random.default_rng(7)
    refit = Refit(prior=wrong(TRUE, *PRIORS[0]))
    for window in windows(5, TRUE, 600):
        factor = rng.choice([0.3, 3.0, 8.0]) if rng.random() < share else 1.0
        refit = refit.observe(dataclasses.replace(window, step_seconds=window.step_seconds * factor), answer_tokens=211)
    found = refit.estimate()
    assert found.confidence > 0.8
    assert ratios(found.iteration, TRUE) == pytest.approx(1.0, abs=0.05)


def test_windows_at_other_clocks_are_brought_to_full_clock():
    refit = Refit(prior=wrong(TRUE, *PRIORS[1]))
    for index, ratio in enumerate([1.0, 0.6, 0.8] * 80):
        window = drawn_window(np.random.default_rng(index), 5.0 * index, TRUE, clock_ratio=ratio)
        refit = refit.observe(window, answer_tokens=211)
    assert ratios(refit.estimate().iteration, TRUE) == pytest.approx(1.0, abs=0.03)


def test_noise_that_no_form_fits_leaves_the_prior():
    found = observe_all(Refit(prior=TRUE), windows(1, TRUE, 300, noise=0.6)).estimate()
    assert found.status is RefitStatus.POOR_FIT
    assert found.iteration is TRUE
    assert found.confidence == 0.0


def test_constant_noise_is_no_shift():
    """No false alarm in ten hours of independent windows."""
    for seed in range(20):
        assert observe_all(Refit(prior=TRUE), windows(seed, TRUE, 360)).estimate().shift == 1.0


def test_time_scaling():
    """Everything twice as slow, prior included: the same multipliers, errors and verdict."""
    prior = wrong(TRUE, *PRIORS[0])
    slow = observe_all(Refit(prior=wrong(prior, 2, 2, 2)), windows(4, wrong(TRUE, 2, 2, 2), 200)).estimate()
    plain = observe_all(Refit(prior=prior), windows(4, TRUE, 200)).estimate()
    assert slow.status is plain.status
    assert ratios(slow.iteration, plain.iteration) == pytest.approx(2.0, rel=1e-9)
    assert slow.standard_errors == pytest.approx(plain.standard_errors)


def test_a_term_the_prior_does_not_have_stays_zero():
    prior = dataclasses.replace(TRUE, dkv_seconds_per_kv_token=0.0)
    found = observe_all(Refit(prior=prior), windows(1, prior, 200)).estimate()
    assert found.iteration.dkv_seconds_per_kv_token == 0.0
    assert set(found.standard_errors) == {"d0", "dT"}
    assert found.status is RefitStatus.IDENTIFIED


@pytest.mark.parametrize("term", ["d0_seconds", "dkv_seconds_per_kv_token"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_an_impossible_prior_is_refused(term, value):
    with pytest.raises(ValueError, match="positive fixed term"):
        Refit(prior=dataclasses.replace(TRUE, **{term: value}))


ANYTHING = st.floats(allow_nan=True, allow_infinity=True)
WINDOWS = st.builds(StepWindow, **{field.name: ANYTHING for field in dataclasses.fields(StepWindow)})
POSITIVE = st.floats(1e-9, 1e12)
EXTREMES = st.builds(
    StepWindow,
    **{field.name: POSITIVE for field in dataclasses.fields(StepWindow) if field.name != "clock_ratio"},
    clock_ratio=st.floats(0.01, 1.0),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(WINDOWS | EXTREMES, max_size=60), POSITIVE | ANYTHING, st.integers(0, 60))
def test_nothing_raises_and_nothing_is_nan(strange, answer_tokens, sane):
    refit = observe_all(Refit(prior=TRUE), windows(1, TRUE, sane))
    for window in strange:
        refit = refit.observe(window, answer_tokens=answer_tokens)
    found = refit.estimate()
    numbers = [
        *vars(found.iteration).values(), found.level, found.confidence, found.condition_number, found.spread,
        found.shift, *found.standard_errors.values(),
        found.step_error(prefill_tokens=100, decode_sequences=10, kv_tokens=10_000),
    ]  # fmt: skip
    assert not any(math.isnan(number) for number in numbers if number is not None)
    assert 0.0 <= found.confidence <= 1.0


def test_memory_is_bounded():
    refit = observe_all(Refit(prior=TRUE), windows(1, TRUE, 2100))
    assert len(refit.rows) == 2000
