import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.energy import fleet
from wattkeeper.energy import points
from wattkeeper.energy.calibration import Calibration, CalibrationKernel, Reading
from wattkeeper.energy.model import EnergyModel
from wattkeeper.physics.profile import Provenance

PAIRS = [
    fleet.ESTIMATED,
    fleet.FITTED,
    fleet.OTHER_GPU,
    ("meta-llama/Llama-3.1-70B-Instruct", "nvidia-b200", 2),
    ("acme/Foo-13B", "nvidia-l40s", 1),
    ("openai/gpt-oss-120b", "nvidia-h200-sxm", 1),
]
SHIPPED = EnergyModel.load()
PHYSICS = EnergyModel.physics_only()


def test_shipped_model_is_trusted_and_says_where_it_comes_from(model):
    assert model.trusted
    assert model.version.startswith("energy-v2-")
    assert {source["name"] for source in model.card["data"]} == {"ml-energy-v3"}
    assert all(len(source["sha256"]) == 64 and source["licence"] for source in model.card["data"])


def test_physics_only_is_not_trusted():
    assert not PHYSICS.trusted
    assert PHYSICS.version == "physics"


def test_no_queries():
    assert SHIPPED.watts([]) == []


@pytest.mark.parametrize("pair", PAIRS)
def test_idle_replicas_draw_idle(pair):
    served = fleet.profile(*pair)
    predicted = SHIPPED.watts([fleet.query(served, batch=0.0, busy=0.0, replicas=[1, 3])])[0]
    idle = served.energy.idle_watts * served.gpus_per_replica
    np.testing.assert_allclose(predicted.watts, [idle, 3 * idle])
    np.testing.assert_allclose(predicted.low_watts, predicted.watts)


@settings(max_examples=60, deadline=None)
@given(
    pair=st.sampled_from(PAIRS),
    batch=st.floats(0.0, 2000.0),
    busy=st.floats(0.0, 1.0),
    replicas=st.integers(1, 50),
    cap=st.one_of(st.just(float("nan")), st.floats(1.0, 2000.0)),
    clock=st.floats(0.2, 1.0),
    prompt=st.floats(1.0, 30000.0),
    output=st.floats(1.0, 5000.0),
    correction=st.floats(0.2, 5.0),
)
def test_watts_lie_between_idle_and_limit(pair, batch, busy, replicas, cap, clock, prompt, output, correction):
    served = fleet.profile(*pair)
    load = fleet.workload(prompt=prompt, output=output)
    asked = fleet.query(served, batch=batch, busy=busy, replicas=replicas, cap=cap, clock=clock, load=load)
    for model in (SHIPPED, PHYSICS):
        predicted = model.watts([replace(asked, calibration=calibrated(math.log(correction)))])[0]
        gpus = replicas * served.gpus_per_replica
        limit = served.gpu.tdp_watts if np.isnan(cap) else np.clip(cap, served.gpu.min_cap_watts, served.gpu.tdp_watts)
        low, watts, high = (values[0] / gpus for values in (predicted.low_watts, predicted.watts, predicted.high_watts))
        slack = 1e-6 * limit
        assert min(served.energy.idle_watts, limit) - slack <= low <= watts + slack
        assert watts - slack <= high <= limit + slack


@settings(max_examples=30, deadline=None)
@given(pair=st.sampled_from(PAIRS), batch=st.floats(1.0, 256.0), clock=st.floats(0.3, 1.0))
def test_a_lower_clock_never_draws_more_for_the_same_iterations(pair, batch, clock):
    served = fleet.profile(*pair)
    predicted = SHIPPED.watts([fleet.query(served, batch=batch, clock=[clock, 1.0])])[0]
    assert predicted.watts[0] <= predicted.watts[1] * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(pair=st.sampled_from(PAIRS), batch=st.floats(1.0, 256.0), cap=st.floats(100.0, 1000.0))
def test_a_cap_never_draws_more_than_none(pair, batch, cap):
    served = fleet.profile(*pair)
    predicted = SHIPPED.watts([fleet.query(served, batch=batch, cap=[cap, np.nan])])[0]
    assert predicted.watts[0] <= predicted.watts[1] * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(pair=st.sampled_from(PAIRS), batch=st.floats(1.0, 256.0), low=st.floats(0.0, 1.0), high=st.floats(0.0, 1.0))
def test_a_busier_replica_never_draws_less(pair, batch, low, high):
    served = fleet.profile(*pair)
    predicted = SHIPPED.watts([fleet.query(served, batch=batch, busy=[min(low, high), max(low, high)])])[0]
    assert predicted.watts[0] <= predicted.watts[1] + 1e-6 * predicted.watts[1]


def test_queries_do_not_influence_one_another():
    asked = [
        fleet.query(fleet.profile(*pair), batch=[1.0, 10.0, 100.0], replicas=[3.0, 2.0, 1.0], clock=[1.0, 0.7, 0.9])
        for pair in PAIRS
    ]
    together = SHIPPED.watts(asked)
    for one, predicted in zip(asked, together, strict=True):
        alone = SHIPPED.watts([one])[0]
        np.testing.assert_array_equal(alone.watts, predicted.watts)
        np.testing.assert_array_equal(alone.low_watts, predicted.low_watts)
        np.testing.assert_array_equal(alone.high_watts, predicted.high_watts)


def test_an_unknown_gpu_falls_back_to_physics():
    asked = fleet.query(fleet.profile(*fleet.OTHER_GPU), batch=[4.0, 32.0, 128.0])
    np.testing.assert_allclose(SHIPPED.watts([asked])[0].watts, PHYSICS.watts([asked])[0].watts)


def test_factors_outside_the_trained_range_are_named(model):
    state, _ = points.of_queries([fleet.query(fleet.profile(*fleet.OTHER_GPU), batch=[32.0, 1.0])])
    inside, outside = model.outside(state)
    # The data sheet of an A100 is outside, whatever runs on it.
    assert {each.name for each in inside} == {"gpu_power_limit", "gpu_bandwidth"}
    batch = next(each for each in outside if each.name == "batch")
    assert batch.value == pytest.approx(1.0) and batch.low == pytest.approx(8.0) and batch.unit == "sequences"
    assert (batch.low, batch.high) == model.trained_ranges()["batch"]


def test_what_is_not_known_is_outside_the_trained_range(model):
    state, _ = points.of_queries([fleet.query(fleet.profile(*fleet.ESTIMATED), batch=[32.0, 0.0])])
    unknown, idle = model.outside(replace(state, output_tokens=np.array([np.nan, 300.0])))
    assert {each.name: each.value for each in unknown}["output_tokens"] is None
    assert {each.name: each.value for each in idle}["batch"] == pytest.approx(1.0), "the least that trees are asked"


def test_ranges_say_nothing_where_nothing_was_trained_or_all_was_measured(model):
    state, _ = points.of_queries([fleet.query(fleet.profile(*fleet.FITTED), batch=1.0)])
    assert model.outside(state) == [()]
    assert PHYSICS.outside(state) == [()]
    assert PHYSICS.trained_ranges() == {}


def test_measured_energy_is_not_corrected_and_has_a_tighter_interval_than_another_model():
    served = fleet.profile(*fleet.FITTED)
    asked = fleet.query(served, batch=[16.0, 64.0])
    predicted, estimated = SHIPPED.watts([asked])[0], PHYSICS.watts([asked])[0]
    np.testing.assert_allclose(predicted.watts, estimated.watts)
    other = replace(served, model="acme/Foo-8B", energy_provenance=Provenance.ESTIMATED)
    unsure = SHIPPED.watts([replace(asked, profile=other)])[0]
    assert ((predicted.watts - predicted.low_watts) < (unsure.watts - unsure.low_watts)).all()


def test_inside_the_trained_range_the_correction_is_at_work():
    asked = fleet.query(fleet.profile(*fleet.ESTIMATED), batch=[16.0, 64.0])
    ratio = SHIPPED.watts([asked])[0].watts / PHYSICS.watts([asked])[0].watts
    assert (np.abs(ratio - 1.0) > 0.02).all()
    assert (np.abs(np.log(ratio)) < 0.7).all()


@pytest.mark.parametrize("field", ["batch", "step_seconds", "kv_tokens", "busy", "prefill_tokens_per_second"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_queue_without_steady_state_gives_finite_watts(field, value):
    served = fleet.profile(*fleet.ESTIMATED)
    asked = fleet.query(served, batch=[16.0, 32.0], busy=0.5)
    broken = fleet.with_sla(asked, **{field: np.array([value, value])})
    predicted = SHIPPED.watts([broken])[0]
    assert np.isfinite(predicted.watts).all()
    assert np.isfinite(predicted.low_watts).all()
    assert np.isfinite(predicted.high_watts).all()


def test_an_unstable_candidate_is_busy_all_the_time():
    served = fleet.profile(*fleet.ESTIMATED)
    asked = fleet.query(served, batch=64.0, busy=1.0)
    claims_idle = fleet.with_sla(asked, stable=np.array([False]), busy=np.array([0.0]))
    busy = SHIPPED.watts([fleet.with_sla(asked, stable=np.array([False]))])[0].watts
    np.testing.assert_allclose(busy, SHIPPED.watts([asked])[0].watts)
    assert (SHIPPED.watts([claims_idle])[0].watts > 2 * served.energy.idle_watts).all()


def calibrated(error_log, *, batch=16.0, weight=1e6):
    kernel = CalibrationKernel(level_sd_log=0.5, shape_sd_log=0.2, length_log2_batch=2.0, noise_sd_log=0.05)
    return Calibration(kernel=kernel, readings=(Reading(batch=batch, error_log=error_log, weight=weight),))


def test_readings_scale_within_the_bounds_and_narrow_the_interval():
    served = fleet.profile(*fleet.FITTED)
    asked = fleet.query(served, batch=16.0, busy=0.6)
    plain = SHIPPED.watts([asked])[0]
    found = SHIPPED.watts([replace(asked, calibration=calibrated(math.log(1.1)))])[0]
    np.testing.assert_allclose(found.watts, 1.1 * plain.watts, rtol=1e-3)
    assert (found.high_watts / found.low_watts < plain.high_watts / plain.low_watts).all()
    most = SHIPPED.watts([replace(asked, calibration=calibrated(math.log(4.0)))])[0].watts
    np.testing.assert_allclose(most, np.minimum(4.0 * plain.watts, served.gpu.tdp_watts), rtol=1e-3)


def test_what_was_measured_at_one_batch_says_less_of_another():
    served = fleet.profile(*fleet.FITTED)
    asked = fleet.query(served, batch=256.0, busy=0.6)
    plain = SHIPPED.watts([asked])[0]
    found = SHIPPED.watts([replace(asked, calibration=calibrated(math.log(1.2)))])[0]
    assert 1.05 < float(found.watts[0] / plain.watts[0]) < 1.19


def test_more_is_open_on_a_card_that_nobody_measured():
    known, new = (SHIPPED.kernel_of(fleet.profile("Qwen/Qwen3-14B", gpu, 1)) for gpu in ("nvidia-b200", "nvidia-l40s"))
    assert new.level_sd_log > 1.5 * known.level_sd_log
    assert new.noise_sd_log == known.noise_sd_log
    assert PHYSICS.kernel_of(fleet.profile(*fleet.FITTED)) == SHIPPED.kernel_of(None)
