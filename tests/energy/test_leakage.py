"""Nothing of a held-out run may reach the model that is scored on it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.energy import baselines, caps_evaluate, caps_methods, data, estimate, evaluate, factor_schema, factors
from wattkeeper.energy.cap_beliefs import SampledLaw


@pytest.fixture(scope="module")
def runs(data_folder):
    table = data.load_ml_energy(data_folder)
    return evaluate.rows_of(table, estimate.closed_loop_runs(table), "watts")


SPLITS = ("curve", "model", "backbone")


def mean(train, test, _seed):
    return np.full(len(test), float(np.exp(np.median(np.log(train.target)))))


@settings(max_examples=200, deadline=None)
@given(
    groups=st.lists(st.integers(0, 12), min_size=2, max_size=80),
    folds=st.integers(2, 8),
    seed=st.integers(0, 1000),
)
def test_a_group_never_crosses_folds(groups, folds, seed):
    keys = pd.Series([f"group {number}" for number in groups])
    fold = evaluate.group_folds(keys, folds=folds, seed=seed)
    assert len(fold) == len(keys)
    assert set(fold) <= set(range(folds))
    assert pd.DataFrame({"key": keys, "fold": fold}).groupby("key")["fold"].nunique().max() == 1


@pytest.mark.parametrize("split", SPLITS)
def test_no_group_of_the_public_runs_crosses_folds(runs, split):
    _, kept = runs
    groups = kept[f"group_{split}"]
    for seed in range(5):
        fold = evaluate.group_folds(groups, folds=5, seed=seed)
        assert pd.crosstab(groups, fold).gt(0).sum(axis=1).max() == 1


def test_coarser_groups_hold_finer_ones(runs):
    """A curve held out with its backbone leaves no sibling of it in training."""
    _, kept = runs
    for finer, coarser in (("curve", "model"), ("model", "backbone")):
        owners = kept.groupby(f"group_{finer}")[f"group_{coarser}"].nunique()
        assert owners.max() == 1, f"{finer} {owners.idxmax()} lies in several {coarser} groups"


@pytest.mark.parametrize("split", SPLITS)
def test_no_run_is_there_twice_under_two_groups(runs, split):
    """A repeated run under another key would be trained on and scored."""
    rows, kept = runs
    seen = pd.DataFrame(np.round(rows.scaled, 6)).assign(target=np.round(rows.target, 9), group=kept[f"group_{split}"])
    columns = [name for name in seen.columns if name != "group"]
    assert seen.groupby(columns)["group"].nunique().max() == 1


def test_a_repeated_run_under_another_group_would_be_seen(runs):
    rows, kept = runs
    values = pd.DataFrame(np.round(rows.scaled, 6)).assign(target=np.round(rows.target, 9))
    doubled = pd.concat([values, values.iloc[:1]], ignore_index=True)
    doubled["group"] = [*kept["group_curve"], "another curve"]
    assert doubled.groupby(list(values.columns))["group"].nunique().max() == 2


@pytest.mark.parametrize("split", SPLITS)
def test_with_a_shuffled_target_the_model_scores_like_the_mean(runs, split):
    """What physics knows is kept out: it does not see the target, so shuffling cannot tell of it."""
    rows, kept = runs
    groups = kept[f"group_{split}"]
    order = np.random.default_rng(7).permutation(len(rows))
    shuffled = replace(rows, target=rows.target[order], estimate=np.ones(len(rows)))
    methods = {"mean": mean, "plain": baselines.plain_trees, "hybrid": baselines.hybrid}
    found = evaluate.evaluate(
        shuffled, groups, methods, data="shuffled", target="watts", split=split, folds=5, seed=0
    ).scores
    for name in ("plain", "hybrid"):
        assert found[name].value <= found["mean"].value + 1.5, f"{name} learned a shuffled target: a group leaks"


def test_with_the_target_as_a_factor_the_same_check_would_fail(runs):
    """The check has teeth: a leaked target is found."""
    rows, kept = runs
    order = np.random.default_rng(7).permutation(len(rows))
    target = rows.target[order]
    leaking = replace(
        rows,
        target=target,
        estimate=np.ones(len(rows)),
        scaled=np.column_stack([rows.scaled, np.log2(target)]),
        raw=np.column_stack([rows.raw, target]),
        plain=(*rows.plain, rows.scaled.shape[1]),
    )
    found = evaluate.evaluate(
        leaking, kept["group_model"], {"mean": mean, "plain": baselines.plain_trees}, data="leak", target="watts",
        split="model", folds=5, seed=0,
    ).scores  # fmt: skip
    assert found["plain"].value > found["mean"].value + 10.0


def test_no_method_sees_the_target_of_held_out_rows(runs):
    rows, kept = runs
    fold = evaluate.group_folds(kept["group_model"], folds=5, seed=0)
    held = fold == 0
    hidden = replace(rows, target=np.where(held, np.nan, rows.target))
    for name, method in evaluate.METHODS.items():
        known = method(rows[~held], rows[held], 0)
        np.testing.assert_array_equal(known, method(hidden[~held], hidden[held], 0), err_msg=name)


def test_all_factors_are_known_before_acting():
    outcomes = {outcome.name for outcome in factor_schema.OUTCOMES}
    assert outcomes
    assert not outcomes & set(factors.NAMES)
    assert not any("measured" in factor.description for factor in factors.FACTORS)


def test_readings_that_calibrated_a_cap_curve_are_not_scored(data_folder):
    curves = caps_evaluate.curves(data_folder)
    rows = sum(len(curve.cap_watts) for curve in curves)
    draws = {"cold": (0, 1), "+1 random": (1, 4), "+1 designed": (1, 1), "+2 random": (2, 4), "+2 designed": (2, 1)}
    for curve in curves:
        belief = SampledLaw([each for each in curves if each is not curve]).belief(curve.facts, curve.cap_watts)
        for calibration, picked in caps_methods.readings(curve, belief, seed=0):
            assert len(np.unique(picked)) == draws[calibration][0]
    found = caps_evaluate._split(curves, "by card", caps_evaluate.card_of, watts_known=True, seed=0, floor=99.0)
    assert {each.calibration: len(each.measured) for each in found} == {
        name: repeats * (rows - taken * len(curves)) for name, (taken, repeats) in draws.items()
    }
