import numpy as np
import pytest

from wattkeeper.energy import gp
from wattkeeper.energy.gp import Inputs


def made(count=40, *, seed=0, members=4):
    rng = np.random.default_rng(seed)
    groups = rng.integers(members, size=count).astype(np.str_)
    rows = Inputs(
        facts=rng.normal(size=(count, 2)), log2_batch=rng.uniform(3.0, 9.0, count), groups=gp.members(groups, groups)
    )
    levels = dict(zip(np.unique(groups), np.linspace(-0.3, 0.3, len(np.unique(groups))), strict=True))
    return rows, 0.2 * np.sin(rows.facts[:, 0]) + np.array([levels[each] for each in groups])


def test_conditioning_is_the_textbook_formula():
    rows, residual = made()
    process = gp.fit(rows, residual, iterations=5)
    kernel, (ask, _) = process.kernel, made(7, seed=1)
    noisy = kernel.covariance(rows, rows) + (np.exp(2 * kernel.noise_log) + 1e-6) * np.eye(len(rows))
    cross = kernel.covariance(ask, rows)
    mean, sd = process.mean_and_sd(ask)
    assert mean == pytest.approx(cross @ np.linalg.solve(noisy, residual), abs=1e-8)
    variance = np.diag(kernel.covariance(ask, ask) - cross @ np.linalg.solve(noisy, cross.T))
    assert sd**2 == pytest.approx(variance, abs=1e-8)
    assert process.mean(ask) == pytest.approx(mean)


def test_the_covariance_is_symmetric_and_positive():
    rows, residual = made(30)
    covariance = gp.fit(rows, residual, iterations=3).kernel.covariance(rows, rows)
    assert covariance == pytest.approx(covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9


def test_what_is_alike_is_foreseen_and_what_is_far_is_unsure():
    rows, residual = made(80)
    train, test = np.arange(60), np.arange(60, 80)
    process = gp.fit(rows[train], residual[train])
    mean, sd = process.mean_and_sd(rows[test])
    assert np.abs(mean - residual[test]).mean() < 0.4 * np.abs(residual[test]).mean()
    far = Inputs(facts=rows.facts[:1] + 50.0, log2_batch=rows.log2_batch[:1], groups=np.array([["new", "new"]]))
    away, unsure = process.mean_and_sd(far)
    assert abs(away[0]) < 0.02
    assert unsure[0] > 2.0 * np.median(sd)


def test_the_same_rows_give_the_same_bits():
    rows, residual = made()
    first, second = gp.fit(rows, residual, iterations=8), gp.fit(rows, residual, iterations=8)
    assert (first.weights == second.weights).all()


def test_a_run_that_is_far_off_counts_as_one_at_the_bound():
    rows, residual = made()
    wild, tamed = residual.copy(), residual.copy()
    wild[3], tamed[3] = 5.0, 1.0
    kernel = gp.fit(rows, residual, iterations=3).kernel
    found, same = (gp.condition(kernel, rows, each, bound=1.0).mean(rows) for each in (wild, tamed))
    np.testing.assert_array_equal(found, same)
