"""The forecast never falls below a recent maximum, leads a ramp, and uses a season once it has one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.forecast.rates import ForecastSettings, RateHistory, forecast, plan_rates

DAY = 86400.0


def filled(rates, *, start=1_000_000.0, every=15.0, settings=None):
    history = RateHistory(settings)
    time = start
    for rate in rates:
        history.append(time, rate)
        time += every
    return history, time - every


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=120), st.floats(0, 600), st.floats(0.5, 0.999))
def test_at_least_the_max_of_the_last_half_hour(rates, horizon, quantile):
    history, now = filled(rates)
    assert forecast(history, now_seconds=now, horizon_seconds=horizon, quantile=quantile) >= max(rates) * (1 - 1e-6)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=60))
def test_stabilised_is_never_below_planned(rates):
    history, now = filled(rates, every=30.0)
    found = plan_rates(history, now_seconds=now, startup_seconds=90)
    assert found.planned >= found.rate_now == rates[-1]
    assert (found.stabilised is None) == (len(rates) < 12) or 10 <= len(rates) <= 12
    assert found.stabilised is None or found.stabilised >= found.planned


def test_no_history_is_not_zero():
    assert plan_rates(RateHistory(), now_seconds=0.0, startup_seconds=90) is None
    history, now = filled([5.0])
    assert plan_rates(history, now_seconds=now + 3600, startup_seconds=90) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_missing_samples_are_refused(bad):
    with pytest.raises(ValueError, match="leave missing samples out"):
        RateHistory().append(0.0, bad)


def test_planned_falls_soon_after_a_burst_and_stabilised_does_not():
    history, now = filled([40.0] * 8 + [10.0] * 20)
    found = plan_rates(history, now_seconds=now, startup_seconds=90)
    assert found.planned < 14 and found.stabilised == pytest.approx(40.0)


def test_a_ramp_is_led_by_the_startup_time():
    history, now = filled([10 + 0.01 * 15 * i for i in range(60)])
    short = plan_rates(history, now_seconds=now, startup_seconds=0)
    long = plan_rates(history, now_seconds=now, startup_seconds=300)
    assert long.planned - short.planned == pytest.approx(3.0, rel=0.2)


def test_a_steady_rate_has_no_trend_and_noise_follows_the_square_root():
    history, now = filled([16.0] * 60)
    found = plan_rates(history, now_seconds=now, startup_seconds=300)
    assert found.planned == pytest.approx(16 + 1.645 * math.sqrt(16 / 60), rel=1e-3)
    bursty = plan_rates(history, now_seconds=now, startup_seconds=300, dispersion=4.0)
    assert bursty.planned - 16 == pytest.approx(2 * (found.planned - 16), rel=1e-3)


def test_the_season_of_yesterday_leads_todays_ramp():
    def rate(time):
        return 50.0 if (time % DAY) >= 9 * 3600 else 10.0

    history = RateHistory()
    time = 20 * DAY + 8 * 3600
    while time < 21 * DAY + 9 * 3600 - 60:
        history.append(time, rate(time))
        time += 60
    ahead = plan_rates(history, now_seconds=time, startup_seconds=600)
    assert ahead.planned > 50


def test_settings_scale_with_a_fast_clock():
    settings = ForecastSettings().scaled(60)
    assert settings.fast_window_seconds == 2.0 and settings.quantile == 0.95
    history, now = filled([40.0] * 8 + [10.0] * 20, every=0.25, settings=settings)
    found = plan_rates(history, now_seconds=now, startup_seconds=1.5, settings=settings)
    assert found.stabilised == pytest.approx(40.0) and found.planned < 25
    with pytest.raises(ValueError, match="positive"):
        settings.scaled(0)


def test_memory_is_bounded_and_late_samples_are_kept():
    history, now = filled([1.0] * 10, every=4000.0)
    history.append(now - 305, 9.0)
    history.append(now - 5, 9.0)
    history.append(now - 90 * DAY, 99.0)
    assert history.latest == (now, 1.0)
    found = plan_rates(history, now_seconds=now, startup_seconds=0)
    assert found.stabilised == pytest.approx(9 + 1.645 * math.sqrt(9 / 60), rel=1e-3)
    assert len(history.recent(now_seconds=now, window_seconds=1e9)[0]) == 3


@given(st.lists(st.tuples(st.floats(0, 1e7), st.floats(0, 100)), max_size=50), st.floats(0, 1e7))
def test_any_order_of_samples_gives_a_finite_forecast_or_none(samples, now):
    history = RateHistory()
    for time, rate in samples:
        history.append(time, rate)
    found = plan_rates(history, now_seconds=now, startup_seconds=90)
    assert found is None or math.isfinite(found.planned)
    assert found is None or found.stabilised is None or found.stabilised >= found.planned
