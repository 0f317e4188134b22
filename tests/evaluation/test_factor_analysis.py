"""`wattkeeper evaluate factors`: shares hold together, the check has teeth, and what the data lack is told."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from wattkeeper.cli.main import app
from wattkeeper.energy import factors
from wattkeeper.energy.baselines import Rows
from wattkeeper.energy.contributions import DIMENSIONS
from wattkeeper.energy.factors import Dimension
from wattkeeper.evaluation import factor_analysis, factor_pictures, factor_tables


@pytest.fixture(scope="module")
def found():
    folder = os.environ.get("WATTKEEPER_DATA")
    if not folder or not (Path(folder) / "energy").is_dir():
        pytest.skip("WATTKEEPER_DATA has no energy/ (measured runs)")
    return factor_analysis.analyse(Path(folder))


def made_up(*, seed=0, groups=12, each=30):
    """Runs whose target follows one factor of the scheduling dimension and nothing else."""
    rng = np.random.default_rng(seed)
    scaled = rng.normal(size=(groups * each, len(factors.FACTORS)))
    batch = scaled[:, factors.NAMES.index("batch")]
    plain = tuple(index for index, factor in enumerate(factors.FACTORS) if not factor.physical)
    target = np.exp(batch + 0.05 * rng.normal(size=len(batch)))
    ones = np.ones(len(batch))
    rows = Rows(scaled=scaled, raw=scaled, plain=plain, target=target, estimate=ones, hardware=ones)
    names = pd.Series(np.repeat([f"g{number}" for number in range(groups)], each))
    return rows, names


def test_the_check_finds_the_dimension_that_the_target_follows():
    rows, names = made_up()
    codes, labels = pd.factorize(names)
    draws = factor_analysis._draws(len(labels), seed=0)
    error_log, lost = factor_analysis._permuted(rows, names, codes, draws, seed=0)
    assert error_log < 0.3
    assert lost["Scheduling"].low > 0.5
    for dimension in (Dimension.KV_CACHE, Dimension.SYSTEM, Dimension.WORKLOAD):
        assert abs(lost[dimension.value].mean) < 0.05


def test_intervals_hold_the_mean_and_are_wider_over_groups_that_differ():
    codes = np.repeat(np.arange(10), 20)
    draws = factor_analysis._draws(10, seed=0)
    rng = np.random.default_rng(0)
    alike = factor_analysis._interval(rng.normal(1.0, 0.1, 200), codes, draws)
    different = factor_analysis._interval(1.0 + 0.1 * codes + rng.normal(0.0, 0.1, 200), codes, draws)
    for each in (alike, different):
        assert each.low < each.mean < each.high
    assert different.high - different.low > 3 * (alike.high - alike.low)


def test_dimensions_and_interactions_are_complete(found):
    for target in found.targets:
        assert set(target.dimensions) == {each.value for each in DIMENSIONS}
        np.testing.assert_allclose(target.interactions, target.interactions.T)
        assert (np.diag(target.interactions) == 0).all()
        for dimension, size in target.dimensions.items():
            parts = sum(each.size.mean for each in target.causes if each.dimension == dimension)
            assert size.low <= size.mean <= size.high
            assert size.mean <= parts + 1e-9, "a dimension moves no more than its causes together"


def test_the_typical_run_is_one_of_them_and_what_never_moves_is_told(found):
    assert "sequences at once" in found.typical
    told = {name for name, _, _ in found.never_moved}
    assert {"busy_share", "replicas", "clock_ratio", "power_cap"} <= told
    assert not told & {each.name for target in found.targets for each in target.causes if each.size.mean > 0}


def test_tables_and_pictures(found, tmp_path):
    made = factor_tables.tables(found)
    assert len({table.key for table in made}) == len(made)
    assert all(len(row) == len(table.columns) for table in made for row in table.rows)
    paths = factor_pictures.draw(found, tmp_path)
    assert [path.name for path in paths] == ["factors-bars.png", "factors-interactions.png"]


def test_the_command_needs_the_data_and_says_which(tmp_path):
    answer = CliRunner().invoke(app, ["evaluate", "factors", "--data", str(tmp_path)])
    assert answer.exit_code == 1
    assert "ml-energy" in answer.output


def test_the_command_as_json(found, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# X\n<!-- evaluate factors -->\n<!-- /evaluate factors -->\n")
    answer = CliRunner().invoke(app, ["evaluate", "factors", "--output", "json", "--page", str(page)])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert told["rows"] == found.rows
    assert "By dimension" in page.read_text()
