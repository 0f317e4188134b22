from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.energy import fleet
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.energy import correction, data, factors, features, fitting, learned_file, terms
from wattkeeper.energy.correction import KNOTS_PER_DOUBLING, Correction
from wattkeeper.energy.model import EnergyModel
from wattkeeper.energy.points import OperatingPoints, closed_loop
from wattkeeper.physics import profiles

SHIPPED = EnergyModel.load()
KNOWN = ("Qwen/Qwen3-32B", "nvidia-b200", 1)


def fresh() -> Correction:
    made = EnergyModel.load().correction
    assert made is not None
    return made


def loop(pair, *, batch, prompt=512.0, output=512.0, multimodal=0.0) -> OperatingPoints:
    ones = np.ones(len(batch))
    return closed_loop(
        fleet.profile(*pair), batch=np.asarray(batch, dtype=float), prompt_tokens=prompt * ones,
        output_tokens=output * ones, multimodal=multimodal * ones,
    )  # fmt: skip


def test_at_its_knots_the_table_is_the_learned_model():
    state = loop(KNOWN, batch=2.0 ** (np.arange(8, 17) / KNOTS_PER_DOUBLING))
    made = fresh()
    direct = made.model.predict(made.runs([state])).log_value
    (found,) = made.at([state])
    np.testing.assert_allclose(np.log(state.busy_watts) + found[0], direct, atol=1e-6)


def test_between_knots_it_lies_between_them():
    made = fresh()
    low, middle, high = (
        made.at([loop(KNOWN, batch=[32.0], prompt=prompt)])[0][0][0] for prompt in (512.0, 600.0, 512.0 * 2**0.5)
    )
    assert min(low, high) - 1e-12 <= middle <= max(low, high) + 1e-12


def test_what_was_asked_before_changes_nothing():
    made, other = fresh(), fresh()
    first = loop(KNOWN, batch=[3.0, 40.0, 700.0], prompt=333.0)
    made.at([loop(KNOWN, batch=[9.0], prompt=300.0, output=90.0), loop(fleet.ESTIMATED, batch=[9.0])])
    np.testing.assert_allclose(made.at([first])[0], other.at([first])[0], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(made.at([first])[0], made.at([first])[0])


def test_rows_of_several_lengths_are_each_answered_for_their_own():
    made = fresh()
    short, long = loop(KNOWN, batch=[16.0, 64.0], prompt=100.0), loop(KNOWN, batch=[16.0, 64.0], prompt=5000.0)
    arrays = {
        name: np.column_stack([getattr(short, name), getattr(long, name)]).ravel()
        for name in vars(short)
        if name != "profile"
    }
    mixed = made.at([replace(short, **arrays)])[0]
    np.testing.assert_array_equal(mixed[:, ::2], made.at([short])[0])
    np.testing.assert_array_equal(mixed[:, 1::2], made.at([long])[0])


def test_a_card_unlike_the_trained_ones_is_left_to_physics():
    made = fresh()
    (found,) = made.at([loop(fleet.OTHER_GPU, batch=[8.0, 64.0])])
    assert not found[0].any()
    assert (found[1] == correction.PHYSICS_HALF_WIDTH_LOG).all()


def test_less_is_known_of_models_further_off():
    made = fresh()
    mistral = ("mistralai/Mistral-7B-Instruct-v0.3", "nvidia-h100-sxm", 1)
    known, sibling, new = (
        made.at([loop(pair, batch=[32.0])])[0][1][0]
        for pair in (KNOWN, ("Qwen/Qwen3-32B-FP8", "nvidia-b200", 1), mistral)
    )
    assert known < sibling < new


def test_a_card_between_the_trained_ones_has_a_wide_interval():
    made = fresh()
    known, new = (
        made.at([loop(("Qwen/Qwen3-32B", gpu, 1), batch=[32.0])])[0][1][0] for gpu in ("nvidia-b200", "nvidia-h200-sxm")
    )
    assert known < made.half_widths.physics <= new


def test_a_model_that_nobody_knows_is_left_to_physics():
    profile = replace(fleet.profile(*KNOWN), model="acme/secret")
    state = replace(loop(KNOWN, batch=[8.0, 64.0]), profile=profile)
    (found,) = fresh().at([state])
    assert not found[0].any()


def test_a_load_unlike_any_run_goes_to_the_fitted_prior():
    made = fresh()
    state = loop(KNOWN, batch=[64.0], prompt=2.0**17, output=512.0)
    card, near = made.trained.weights(factors.matrix(state, state.busy_watts))
    assert card[0] == 1.0 and near[0] == 0.0
    prior = made.model.predict(made.runs([state])).prior_log[0]
    bounds = made.trained.residual_low, made.trained.residual_high
    expected = np.clip(prior - np.log(state.busy_watts[0]), *bounds)
    assert made.at([state])[0][0][0] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(beyond=st.floats(0.0, 20.0), column=st.integers(0, len(factors.FACTORS) - 1))
def test_weights_fall_with_the_distance_from_training(beyond, column):
    trained = SHIPPED.correction.trained
    table = np.stack([trained.high, trained.high, trained.high])
    table[1, column] += beyond
    table[2, column] = np.nan
    card, near = trained.weights(table)
    assert card[0] == near[0] == 1.0
    assert near[1] == pytest.approx(max(1.0 - beyond / factors.FADES[column], 0.0))
    assert near[2] == 0.0
    assert card[1] == (near[1] if factors.NAMES[column] in ("gpu_power_limit", "gpu_bandwidth") else 1.0)


def test_the_nearest_task_of_a_known_deployment_is_taken():
    made = fresh()
    measured = [each for each in made._deployments if each.model == "Qwen/Qwen3-32B" and each.gpu == "nvidia-b200"]
    one = next(each for each in measured if not each.multimodal and each.gpus == 1)
    state = loop(KNOWN, batch=[8.0], prompt=2**one.log2_prompt, output=2**one.log2_output)
    assert made.runs([state]).groups[0].tolist() == list(one.groups)
    other = made.runs([loop(("Qwen/Qwen3-32B", "nvidia-b200", 8), batch=[8.0])]).groups[0]
    assert other.tolist() == ["Qwen/Qwen3-32B", "qwen3-32b", "|nvidia-b200|8", ""]


def test_caution_about_limits_changes_no_correction_and_makes_no_table():
    made, state = fresh(), loop(KNOWN, batch=[8.0, 64.0])
    before = made.at([state])[0]
    careful = replace(state, profile=replace(state.profile, cap_caution=float("inf")))
    np.testing.assert_array_equal(made.at([careful])[0], before)
    assert len(made._tables) == 1


def test_a_users_own_deployment_goes_before_public_ones():
    made = fresh()
    public = next(each for each in made._deployments if each.model == KNOWN[0] and each.gpu == KNOWN[1])
    mine = replace(
        public, log2_prompt=20.0, multimodal=False, groups=(KNOWN[0], "qwen3-32b", "own|x", "mine"), own=True
    )
    other = Correction(
        made.model, trained=made.trained, half_widths=made.half_widths, deployments=[*made._deployments, mine]
    )
    state = loop(KNOWN, batch=[8.0])
    assert other.runs([state]).groups[0, 3] == "mine"
    assert made.runs([state]).groups[0, 3] != "mine"


def test_a_smaller_kv_cache_dtype_is_seen():
    plain = fleet.profile(*KNOWN)
    eight_bit = profiles.serving_profile(
        model=KNOWN[0], accelerator=KNOWN[1], gpus_per_replica=KNOWN[2], engine=EngineSettings(kv_cache_dtype="fp8"),
    )  # fmt: skip
    assert eight_bit.kv_bytes_per_token == pytest.approx(plain.kv_bytes_per_token / 2)
    runs = fresh().runs([replace(loop(KNOWN, batch=[64.0]), profile=each) for each in (plain, eight_bit)])
    column = terms.NAMES.index("kv_read")
    assert runs.term_seconds[1, column] == pytest.approx(runs.term_seconds[0, column] / 2)
    assert runs.facts[0, features.FACTS.index("log2_kv_bytes")] - 1 == pytest.approx(
        runs.facts[1, features.FACTS.index("log2_kv_bytes")]
    )


def test_tables_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(correction, "_MOST_PROFILES", 1)
    made = fresh()
    before = made.at([loop(KNOWN, batch=[8.0])])[0]
    made.at([loop(fleet.ESTIMATED, batch=[8.0])])
    assert len(made._tables) == 2
    np.testing.assert_allclose(made.at([loop(KNOWN, batch=[8.0])])[0], before, atol=1e-9)
    assert len(made._tables) == 1


def test_the_file_answers_as_the_fitted_model():
    model = SHIPPED.correction.model
    state = loop(KNOWN, batch=[8.0, 64.0, 512.0])
    runs = SHIPPED.correction.runs([state])
    residual = model.process.kernel.covariance(model.process.rows, model.process.rows) @ model.process.weights
    residual += (np.exp(2 * model.process.kernel.noise_log) + 1e-6) * model.process.weights
    again = learned_file.restored(learned_file.plain(model, residual))
    np.testing.assert_allclose(again.predict(runs).log_value, model.predict(runs).log_value, atol=1e-5)
    np.testing.assert_allclose(again.predict(runs).sd_log, model.predict(runs).sd_log, rtol=1e-5)


@pytest.mark.data
def test_measured_runs_are_answered_as_by_the_learned_model(data_folder):
    given_runs = fitting.measured(data.load_ml_energy(data_folder))
    index = np.arange(len(given_runs.rows))
    watts, _ = given_runs.answers(SHIPPED, index)
    direct = np.exp(SHIPPED.correction.model.predict(given_runs.runs).log_value)
    inside = SHIPPED.correction.trained.weights(given_runs.rows.scaled)[1] == 1.0
    assert inside.mean() > 0.99
    difference = np.abs(np.log(watts / direct))[inside]
    assert difference.mean() < 0.015
