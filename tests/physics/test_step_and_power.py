from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.physics import catalogue, power, step
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.physics.profiles import serving_profile

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_70B = "meta-llama/Llama-3.1-70B-Instruct"


@pytest.fixture(scope="module")
def small():
    return serving_profile(model=LLAMA_8B, accelerator="h100", gpus_per_replica=1, engine=EngineSettings())


@pytest.fixture(scope="module")
def large():
    return serving_profile(
        model=LLAMA_70B, accelerator="h100", gpus_per_replica=4, engine=EngineSettings(tensor_parallel_size=4)
    )


def draw(profile, *, batch, prompt=150.0, answer=396.0, cap=float("nan")):
    """Step seconds and watts per GPU of steady decoding at a batch size, prompts of new requests included."""
    work = {
        "prefill_tokens": batch * prompt / answer,
        "decode_sequences": batch,
        "kv_tokens": batch * (prompt + answer / 2),
    }
    ratio = power.clock_under_cap(profile, power_cap_watts=cap, **work)
    seconds = step.step_seconds(profile.iteration, clock_ratio=ratio, **work)
    joules = power.step_joules(profile, step_seconds=seconds, clock_ratio=ratio, **work)
    return float(seconds), float(joules / seconds)


def test_hand_computed_step(small):
    seconds = step.step_seconds(small.iteration, prefill_tokens=1000, decode_sequences=10, kv_tokens=20_000)
    assert seconds == pytest.approx(6.75e-3 + 0.025 + 0.62e-3 + 1.0e-3)
    with_attention = step.step_seconds(
        small.iteration, prefill_tokens=1000, decode_sequences=10, kv_tokens=20_000, attention_products=5e5
    )
    assert with_attention - seconds == pytest.approx(9.6e-10 * 5e5)


@pytest.mark.parametrize(("batch", "seconds", "watts"), [(8, 7.5e-3, 486), (32, 9.4e-3, 560), (128, 18.1e-3, 669)])
def test_small_model_meets_its_measured_points(small, batch, seconds, watts):
    """ML.ENERGY leaderboard v3, Llama-3.1-8B on one H100, lm-arena-chat."""
    assert draw(small, batch=batch) == (pytest.approx(seconds, rel=0.06), pytest.approx(watts, rel=0.03))


@pytest.mark.parametrize(("batch", "seconds", "watts"), [(8, 17.0e-3, 441), (128, 32.9e-3, 546), (512, 86.2e-3, 623)])
def test_large_model_meets_its_measured_points(large, batch, seconds, watts):
    """The same, Llama-3.1-70B on four H100."""
    seconds_found, watts_found = draw(large, batch=batch, answer=353.0)
    assert (seconds_found, watts_found) == (pytest.approx(seconds, rel=0.08), pytest.approx(watts, rel=0.08))


def test_voltage_curve_and_its_ends():
    assert power.voltage_squared(1.0) == 1.0
    assert power.voltage_squared(0.75) == pytest.approx(0.86**2)
    assert power.voltage_squared(0.1) == pytest.approx(0.76**2)


def test_lower_clock_saves_energy_of_light_decode_and_has_an_optimum(small):
    ratios = np.linspace(0.2, 1.0, 81)
    work = {"prefill_tokens": 0.0, "decode_sequences": 16.0, "kv_tokens": 16_000.0}
    seconds = step.step_seconds(small.iteration, clock_ratio=ratios, **work)
    joules = power.step_joules(small, step_seconds=seconds, clock_ratio=ratios, **work)
    best = ratios[np.argmin(joules)]
    assert 0.45 <= best <= 0.65  # 890-1290 MHz
    assert 0.8 < joules.min() / joules[-1] < 0.88


def test_prefill_runs_at_its_ceiling(small):
    work = {"prefill_tokens": 4000.0, "decode_sequences": 0.0, "kv_tokens": 0.0}
    full = step.step_seconds(small.iteration, clock_ratio=1.0, **work)
    at_ceiling = step.step_seconds(small.iteration, clock_ratio=0.8333, **work)
    assert at_ceiling - full < 0.1 * small.iteration.d0_seconds


PROFILES = [
    serving_profile(
        model=model, accelerator=gpu.name, gpus_per_replica=8, engine=EngineSettings(tensor_parallel_size=8)
    )
    for gpu in catalogue.gpus()
    for model in (LLAMA_8B, "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3")
] + [serving_profile(model=LLAMA_8B, accelerator="h100", gpus_per_replica=1, engine=EngineSettings())]
work_strategy = st.fixed_dictionaries(
    {
        "prefill_tokens": st.floats(0, 16_384),
        "decode_sequences": st.floats(0, 1024),
        "kv_tokens": st.floats(0, 2_000_000),
    }
)


@given(st.sampled_from(PROFILES), work_strategy, st.floats(0.1, 1.0), st.floats(0.1, 1.0))
def test_a_lower_clock_is_never_faster(profile, work, one, other):
    low, high = sorted((one, other))
    slow, fast = step.step_seconds(profile.iteration, clock_ratio=[low, high], **work)
    assert slow >= fast - 1e-12


@given(st.sampled_from(PROFILES), work_strategy, st.floats(50, 1200), st.floats(0.3, 1.0))
def test_the_cap_holds_and_is_used(profile, work, cap, lock):
    """Watts after clock and stretch are at most the cap; the clock falls no further than the cap asks."""
    limit = float(power.effective_cap_watts(profile, cap))
    ratio = power.clock_under_cap(profile, power_cap_watts=cap, clock_ratio=lock, **work)
    seconds = step.step_seconds(profile.iteration, clock_ratio=ratio, **work)
    joules = power.step_joules(profile, step_seconds=seconds, clock_ratio=ratio, **work)
    held = power.held_step_seconds(profile, power_cap_watts=cap, joules=joules, step_seconds=seconds)
    static = profile.energy.static_watts
    lowest = profile.gpu.min_clock_mhz / profile.gpu.max_clock_mhz
    if limit - static > 0.03 * profile.gpu.tdp_watts:
        assert (joules + static * (held - seconds)) / held <= limit * 1.01
    if lowest + 1e-6 < ratio < lock - 1e-6:
        assert joules / seconds >= limit * 0.97
    assert lowest - 1e-9 <= ratio <= max(lock, lowest) + 1e-9


@given(st.sampled_from(PROFILES), work_strategy, st.floats(100, 700), st.floats(0, 300))
def test_a_higher_cap_never_lowers_the_clock(profile, work, cap, extra):
    low, high = power.clock_under_cap(profile, power_cap_watts=[cap, cap + extra], **work)
    assert low <= high + 1e-3


@given(st.sampled_from(PROFILES), work_strategy, st.floats(50, 1200), st.floats(1.0, 5.0))
def test_caution_only_lowers_the_clock_and_nothing_without_a_limit(profile, work, cap, caution):
    wary = replace(profile, cap_caution=caution)
    believed, feared = (float(power.clock_under_cap(each, power_cap_watts=cap, **work)) for each in (profile, wary))
    assert feared <= believed + 1e-3
    free, alike = (float(power.clock_under_cap(each, power_cap_watts=np.nan, **work)) for each in (profile, wary))
    assert alike == pytest.approx(free, abs=1e-3)


def test_without_any_belief_a_limit_bites_as_on_a_card_at_its_rating(small):
    """Light decode estimated at 486 W of 700 W: at 560 W nothing happens, unless the card may draw 700 W."""
    work = {"prefill_tokens": 0.0, "decode_sequences": 8.0, "kv_tokens": 4000.0}
    wary = replace(small, cap_caution=np.inf)
    assert power.clock_under_cap(small, power_cap_watts=560.0, **work) == 1.0
    ratio = power.clock_under_cap(wary, power_cap_watts=560.0, **work)
    assert ratio < 0.9
    seconds, full = (step.step_seconds(small.iteration, clock_ratio=each, **work) for each in (ratio, 1.0))
    estimate, most = (
        power.step_joules(small, step_seconds=time, clock_ratio=each, **work) / time
        for time, each in ((seconds, ratio), (full, 1.0))
    )
    static = small.energy.static_watts
    factor = (700.0 - static) / (most - static)
    floor = power.floor_watts(small, ratio)
    assert floor + factor * (estimate - floor) == pytest.approx(560.0, rel=2e-3)


def test_twice_the_dynamic_watts_are_at_most_the_rating(small):
    wary = replace(small, cap_caution=2.0)
    assert power.caution_factor(wary, lambda: 300.0) == 2.0
    static = small.energy.static_watts
    assert power.caution_factor(wary, lambda: 600.0) == pytest.approx((700.0 - static) / (600.0 - static))
    assert power.caution_factor(wary, lambda: 900.0) == 1.0
    assert power.caution_factor(small, lambda: 1 / 0) == 1.0


def test_shapes_broadcast(small):
    result = step.step_seconds(
        small.iteration, prefill_tokens=0.0, decode_sequences=np.arange(3.0), kv_tokens=0.0, clock_ratio=[[1.0], [0.5]]
    )
    assert result.shape == (2, 3)


def test_host_and_links_keep_their_pace_at_a_low_clock():
    plain = IterationCoefficients(
        d0_seconds=6e-3,
        dt_seconds_per_token=2e-5,
        dn_seconds_per_decode=6e-5,
        dkv_seconds_per_kv_token=5e-8,
        da_seconds_per_token_squared=0.0,
    )
    split = replace(plain, host_seconds=1e-3, host_seconds_per_sequence=4e-5, exchange_seconds_per_token=5e-6)
    at_full, split_at_full = step.at_clock(plain, 1.0), step.at_clock(split, 1.0)
    np.testing.assert_allclose(split_at_full, at_full)
    d0, dt, dn, dkv, _ = (float(each) for each in step.at_clock(split, 0.6))
    slow = [float(each) for each in step.at_clock(plain, 0.6)]
    assert d0 == pytest.approx(1e-3 + (slow[0] / 6e-3) * 5e-3)
    assert dt == pytest.approx(5e-6 + (slow[1] / 2e-5) * 1.5e-5)
    assert dn == pytest.approx(4.5e-5 + (slow[2] / 6e-5) * 1.5e-5)
    assert dkv == slow[3]
    all_host = replace(plain, host_seconds=1.0)
    assert float(step.at_clock(all_host, 0.5)[0]) == 6e-3
