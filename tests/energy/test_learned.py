import dataclasses

import numpy as np
import pytest

from wattkeeper.energy import evaluate, learned, ml_energy_evaluate
from wattkeeper.energy.calibration import CalibrationKernel


@pytest.fixture(scope="module")
def tables(data_folder):
    return ml_energy_evaluate.tables(data_folder)


def some(tables, *, every=4):
    """Whole deployments, so that a fit takes seconds."""
    names = np.unique(tables.runs.groups[:, 3])[::every]
    return np.flatnonzero(np.isin(tables.runs.groups[:, 3], names))


def folds(tables, index, *, count=4):
    return np.asarray(evaluate.group_folds(tables.groups["model"].iloc[index], folds=count, seed=0), dtype=np.int_)


def test_joules_are_watts_times_seconds(tables):
    runs = tables.runs
    assert np.exp(runs.joules_log) * 0.6 * runs.tdp_watts == pytest.approx(np.exp(runs.seconds_log) * runs.watts)
    assert runs.from_log("J/token", runs.joules_log) == pytest.approx(runs.joules_per_token)
    assert runs.from_log("W per GPU", runs.log_target("W per GPU")) == pytest.approx(runs.watts)


def test_held_out_models_are_foreseen_better_than_by_the_prior_and_by_the_mean(tables):
    index = some(tables)
    runs, fold = tables.runs[index], folds(tables, index)
    train, test = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    model = learned.fit(runs[train], "J/token", inner=fold[train], seed=0)
    found = model.predict(runs[test])
    truth = runs[test].joules_log
    mean = runs[train].joules_log.mean()
    assert np.abs(found.log_value - truth).mean() < 0.4 * np.abs(mean - truth).mean()
    assert np.isfinite(found.sd_log).all()
    assert (found.sd_log > 0).all()
    assert model.spread > 0.3
    again = learned.fit(runs[train], "J/token", inner=fold[train], seed=0).predict(runs[test])
    assert (again.log_value == found.log_value).all(), "the same data and seed give the same bits"


def test_a_shuffled_target_scores_like_the_mean(tables):
    index = some(tables)
    runs, fold = tables.runs[index], folds(tables, index)
    order = np.random.default_rng(0).permutation(len(index))
    shuffled = dataclasses.replace(
        runs, joules_per_token=runs.joules_per_token * np.exp(runs.joules_log[order] - runs.joules_log)
    )
    train, test = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    found = learned.fit(shuffled[train], "J/token", inner=fold[train], seed=0).predict(shuffled[test])
    truth = shuffled[test].joules_log
    mean = np.median(shuffled[train].joules_log)
    assert np.abs(found.log_value - truth).mean() > 0.85 * np.abs(mean - truth).mean()


def test_the_kernel_of_errors_is_found_again():
    rng = np.random.default_rng(0)
    batch = np.tile(np.geomspace(8, 1024, 8), 60)
    deployment = np.repeat(np.arange(60), 8).astype(np.str_)
    true = CalibrationKernel(level_sd_log=0.2, shape_sd_log=0.05, length_log2_batch=2.0, noise_sd_log=0.03)
    root = np.linalg.cholesky(true.covariance(batch[:8], batch[:8]) + true.noise_sd_log**2 * np.eye(8))
    errors = np.concatenate([root @ rng.standard_normal(8) for _ in range(60)])
    found = learned.calibration_kernel(errors, batch, deployment)
    assert found.level_sd_log == pytest.approx(0.2, rel=0.4)
    assert found.noise_sd_log == pytest.approx(0.03, rel=0.5)


@pytest.mark.parametrize("count", [2, 3, 5, 16])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_designed_readings_lie_on_the_curve(count, number):
    picked = ml_energy_evaluate.designed(count, number)
    assert len(picked) == len(set(picked)) <= number
    assert picked.min() >= 0
    assert picked.max() < count


@pytest.mark.parametrize("split", ml_energy_evaluate.SPLITS)
@pytest.mark.parametrize("seed", range(5))
def test_groups_never_cross_folds(tables, split, seed):
    groups = tables.groups[split]
    fold = evaluate.group_folds(groups, folds=5, seed=seed)
    for name in groups.unique():
        assert len(set(fold[(groups == name).to_numpy()])) == 1


def test_a_new_type_of_gpu_is_less_sure_and_readings_of_it_count_more(tables):
    index = some(tables)
    runs, fold = tables.runs[index], folds(tables, index)
    train, test = np.flatnonzero(fold != 0), np.flatnonzero(fold == 0)
    model = learned.fit(runs[train], "W per GPU", inner=fold[train], seed=0)
    known = runs[test]
    other = dataclasses.replace(known, gpu=np.full(len(known), "another"))
    # The prior of a type without data goes by the common scales, so that only the spread is compared.
    wider = model.predict(other).sd_log
    assert (wider * model.spread > 1.6 * learned.NEW_GPU_SD_LOG).all()
    assert (wider > model.predict(known).sd_log).all()
    assert model.kernel_on("another").level_sd_log > model.kernel_on(str(known.gpu[0])).level_sd_log
