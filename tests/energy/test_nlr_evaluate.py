import numpy as np
import pytest

from wattkeeper.energy import data, estimate, evaluate, nlr_evaluate


@pytest.fixture(scope="module")
def rows(data_folder):
    table = data.load_nlr(data_folder)
    found, kept = evaluate.rows_of(table, estimate.open_runs(table), "joules_per_token", settings=nlr_evaluate.SETTINGS)
    return found, kept


def test_a_workload_never_seen_is_foreseen_better_than_by_trees_and_physics_alone(rows):
    found, kept = rows
    held = (kept["group_workload"] == sorted(kept["group_workload"].unique())[2]).to_numpy()
    train, test = found[~held], found[held]

    def error(name):
        return np.abs(nlr_evaluate.METHODS[name](train, test, 0) / test.target - 1.0).mean()

    assert error("model") < 0.04
    assert error("model") < error("LightGBM")
    assert error("model") < error("physics")


def test_repeats_say_how_good_any_model_can_be(rows):
    found, kept = rows
    floor = nlr_evaluate._floor(found.target, kept["group_workload"] + "|" + kept["group_rate"])
    assert 98.5 < floor < 99.5
