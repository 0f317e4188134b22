import numpy as np
import pytest

from wattkeeper.domain.errors import DataFileError
from wattkeeper.evaluation import own_history, rendering
from wattkeeper.evaluation.simulated_history import Cards, Traffic, simulated
from wattkeeper.telemetry import run_rows
from wattkeeper.telemetry.run_rows import Deployment

CALM = Traffic(hours=0.5, rates=(6.0, 8.0))
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
CARDS = Cards(model=MODEL, accelerator="h100-sxm", bias=1.0)


@pytest.fixture(scope="module")
def history():
    return simulated(CALM, Cards(model=MODEL, accelerator="h100-sxm", bias=0.5), seed=1)


def test_the_bias_is_in_the_rows(history):
    found = run_rows.of_histories([history], Deployment(name="x", pods=".+", model=MODEL))
    true = simulated(CALM, CARDS, seed=1)
    unbiased = run_rows.of_histories([true], Deployment(name="x", pods=".+", model=MODEL))
    assert len(found.runs) == len(unbiased.runs) >= 2
    for biased, run in zip(found.runs, unbiased.runs, strict=True):
        assert biased.gpu_watts == pytest.approx(0.5 * run.gpu_watts)
        assert biased.batch == run.batch


def test_wider_bounds_use_more_of_the_history():
    quick = simulated(Traffic(hours=1.0, rates=(4.0, 14.0), swing_hours=1.0), CARDS, seed=2)
    rows = own_history.bounds_of(quick, Deployment(name="x", pods=".+", model=MODEL))
    assert [row.factor for row in rows] == list(own_history.FACTORS)
    assert rows[0].used < rows[-1].used
    assert all(0.0 <= row.scatter < 5.0 for row in rows)


def test_tables_tell_all_that_was_found():
    errors = own_history._errors("a", np.array([110.0, 90.0]), np.array([100.0, 100.0]), np.array([0.0, 0.0]), seed=0)
    assert errors.mean_absolute == pytest.approx(10.0)
    found = own_history.Found(
        cards=Cards(model=MODEL, accelerator="h100-sxm", bias=0.9),
        training_rows=7,
        held=(own_history.Held(name="all", runs=2, errors=(errors,)),),
        cached_rows=5,
        prefix=(own_history.Held(name="30%", runs=3, errors=(errors,)),),
        bounds=(own_history.Bounds(factor=1.0, runs=3, used=0.5, scatter=0.2),),
    )
    assert "h100-sxm draws 0.9 times" in own_history.summary(found)
    assert "gave 7 rows" in own_history.summary(found)
    text = "\n".join(rendering.markdown(table) for table in own_history.tables(found))
    assert "power 0.9 times the twin's (7 own rows)" in text
    assert "| all | 2 | 10.0 (10.0 to 10.0) |" in text
    assert "prefix cache hits (5 own rows with hits)" in text
    assert "| 30% | 3 | 10.0 (10.0 to 10.0) |" in text


def test_public_runs_are_needed(tmp_path):
    with pytest.raises(DataFileError, match="missing"):
        own_history.evaluate(tmp_path, CARDS, seed=0, report=pytest.fail)
