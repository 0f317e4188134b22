import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wattkeeper.domain import boosting
from wattkeeper.domain.errors import ModelFileError

_BROKEN = 'raise OSError("libgomp.so.1: cannot open shared object file")\n'


def _table() -> tuple[np.ndarray, np.ndarray]:
    columns = np.random.default_rng(0).uniform(0, 1, (200, 3))
    return columns, np.where(columns[:, 0] > 0.5, 1.0, 0.0) + 0.1 * columns[:, 1]


def test_trees_are_the_same_on_every_run_and_survive_their_text():
    columns, target = _table()
    settings = {"objective": "regression_l1", "min_data_in_leaf": 5, "seed": 3}
    first, second = (boosting.fitted(columns, target, settings=settings, rounds=20) for _ in range(2))
    assert first.model_to_string() == second.model_to_string()
    found = boosting.predict(first, columns)
    assert np.abs(found - target).mean() < 0.1
    np.testing.assert_array_equal(boosting.predict(boosting.read(first.model_to_string()), columns), found)


def test_shares_add_up_to_the_prediction():
    columns, target = _table()
    booster = boosting.fitted(columns, target, settings={"min_data_in_leaf": 5}, rounds=20)
    shares, found = boosting.shares(booster, columns), boosting.predict(booster, columns)
    assert shares.shape == columns.shape
    np.testing.assert_allclose(np.diff(shares.sum(axis=1)), np.diff(found), atol=1e-9)
    assert np.abs(shares[:, 0]).mean() > 5 * np.abs(shares[:, 2]).mean()


def test_a_text_that_is_no_booster():
    with pytest.raises(ModelFileError, match="booster that this LightGBM cannot read"):
        boosting.read("tree\nversion=v4\n")


def test_without_lightgbm_physics_alone_says_why(tmp_path: Path):
    """In a process of its own, with a LightGBM that fails to load as on an image without libgomp."""
    (tmp_path / "lightgbm.py").write_text(_BROKEN)
    script = (
        "from wattkeeper.energy.model import EnergyModel\n"
        "model = EnergyModel.load_or_physics()\n"
        "assert not model.trusted and model.version == 'physics', model.version\n"
        "assert model.reason == 'NoLightGBM', model.reason\n"
        "print(model.problem)\n"
    )
    paths = [str(tmp_path), *sys.path]
    answer = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{script}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "libgomp.so.1" in answer.stdout and "libgomp1" in answer.stdout
