"""Trees without LightGBM give the bits that LightGBM gives, and refuse what they cannot evaluate."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.domain import boosting, plain_trees
from wattkeeper.domain.errors import ModelFileError
from wattkeeper.energy import artefact
from wattkeeper.queueing import correction

ODD = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-35, -1e-35, float(np.float32(1e-35)), -float(np.float32(1e-35)), 1e-300)


def limits(text):
    """Thresholds of every column that a text splits by."""
    columns, values = (
        np.array(
            [float(each) for line in text.splitlines() if line.startswith(name) for each in line[len(name) :].split()]
        )
        for name in ("split_feature=", "threshold=")
    )
    return {int(column): values[columns == column] for column in np.unique(columns)}


def table(text, columns, count, seed):
    """Random rows around the thresholds of each column, many exactly on one, and odd values."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, columns))
    for column, of in limits(text).items():
        near = of[np.abs(of) < 1e6]  # 1e300 parts all numbers from what is missing
        if len(near):
            found[:, column] = rng.uniform(near.min() - 0.1, near.max() + 0.1, count)
        on = rng.random(count) < 0.3
        found[on, column] = rng.choice(of, on.sum())
    odd = rng.random(found.shape) < 0.1
    found[odd] = rng.choice(ODD, odd.sum())
    return found


def same_bits(text, rows):
    expected = boosting.predict(boosting.read(text), rows)
    np.testing.assert_array_equal(plain_trees.read(text).predict(rows), expected)


def fitted(*, rows=300, rounds=8, holes=0.0, seed=0, **changes):
    rng = np.random.default_rng(seed)
    columns = np.round(rng.normal(0, 2, (rows, 4)), 1)
    target = np.where(columns[:, 0] > 0.5, 1.0, 0.0) + np.sin(columns[:, 1]) + 0.1 * rng.normal(size=rows)
    columns[rng.random(columns.shape) < holes] = np.nan
    given_settings = {"objective": "regression", "num_leaves": 12, "min_data_in_leaf": 5, "seed": seed} | changes
    return boosting.fitted(columns, target, settings=given_settings, rounds=rounds).model_to_string()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    objective=st.sampled_from(["regression", "regression_l1", "huber"]),
    leaves=st.sampled_from([2, 3, 12, 32, 33, 64]),
    holes=st.sampled_from([0.0, 0.0, 0.2]),
    rows=st.sampled_from([12, 80, 900]),
    asked=st.integers(1, 70),
)
def test_the_bits_are_those_of_lightgbm(seed, objective, leaves, holes, rows, asked):
    text = fitted(rows=rows, seed=seed, objective=objective, num_leaves=leaves, holes=holes)
    same_bits(text, table(text, 4, asked, seed))


def shipped():
    latency = json.loads(gzip.decompress(correction.shipped_path().read_bytes()))["payload"]
    energy = json.loads(gzip.decompress(artefact.shipped_path().read_bytes()))["payload"]
    found = {f"{name} {kind}": latency[name][kind] for name in ("ttft", "tpot") for kind in ("trees", "spread")}
    found |= {f"energy {index}": text for index, text in enumerate(energy["learned"]["boosters"])}
    return [pytest.param(text, id=name) for name, text in found.items()]


@pytest.mark.parametrize("text", shipped())
def test_shipped_trees_give_the_same_bits(text):
    columns = int(line(text, "max_feature_idx").partition("=")[2]) + 1
    same_bits(text, table(text, columns, 1500, 1))


def test_any_number_of_rows():
    text = fitted()
    trees, rows = plain_trees.read(text), table(text, 4, 1100, 3)
    whole = trees.predict(rows)
    assert trees.predict(rows[:0]).shape == (0,)
    for begin, end in ((0, 1), (511, 513), (1023, 1100)):
        np.testing.assert_array_equal(trees.predict(rows[begin:end]), whole[begin:end])
    with pytest.raises(ValueError, match=r"trees of 4 columns .* \(1100, 3\)"):
        trees.predict(rows[:, :3])


def edited(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


def line(text, name):
    """The first line of a name."""
    return next(each for each in text.splitlines() if each.startswith(f"{name}="))


def looped(text):
    """Both sides of every node of the first tree lead to the same places."""
    return edited(text, line(text, "left_child"), line(text, "right_child").replace("right", "left"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "", "no text of LightGBM's"),
        (lambda text: text[: len(text) // 2], "cut short"),
        (lambda text: edited(text, "version=v4", "version=v9"), "version v9"),
        (lambda text: edited(text, "num_class=1", "num_class=3"), "several classes"),
        (lambda text: edited(text, "objective=regression", "average_output\nobjective=regression"), "averaged"),
        (lambda text: edited(text, "objective=regression", "objective=poisson"), "objective poisson"),
        (lambda text: edited(text, "objective=regression", "objective=regression sqrt"), "objective regression sqrt"),
        (lambda text: edited(text, "\nTree=1\n", "\nTrea=1\n"), "trees are missing"),
        (lambda text: edited(text, "num_cat=0", "num_cat=1"), "by category"),
        (lambda text: edited(text, "decision_type=2", "decision_type=3"), "by category"),
        (lambda text: edited(text, "decision_type=2", "decision_type=6"), "zero as a missing value"),
        (lambda text: edited(text, "is_linear=0", "is_linear=1"), "linear leaves"),
        (lambda text: edited(text, "threshold=", "threshold=nan "), "values where"),
        (lambda text: edited(text, line(text, "leaf_value"), "leaf_value=1 x"), "2 values where"),
        (lambda text: edited(text, "split_feature=", "split_feature=9"), "column that is not there"),
        (looped, "form no tree"),
        (lambda text: edited(text, "leaf_value=", "leaf_worth="), "leaf_value"),
        (lambda text: fitted(rows=900, num_leaves=80), "80 leaves"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_refused(change, said):
    with pytest.raises(ModelFileError, match=said):
        plain_trees.read(change(fitted()))
