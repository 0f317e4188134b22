import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wattkeeper.evaluation import finite_run, nlr, nlr_baselines, nlr_data
from wattkeeper.evaluation.finite_run import Costs

TRUTH = Costs(
    fixed_seconds=0.018,
    per_decode_seconds=4e-5,
    per_kv_token_seconds=3e-8,
    per_prompt_token_seconds=9e-5,
    client_seconds=0.008,
    front_end_seconds=3e-4,
    knee_sequences=100.0,
    beyond_knee_seconds=6e-5,
    mixed_seconds=1e-3,
    delivery_seconds=4e-5,
)


def made_up(rates: tuple[float, ...], *, requests: int = 150) -> pd.DataFrame:
    """Cells as an engine with the costs `TRUTH` would have produced them."""
    rows = []
    known = np.array([60.0, 100.0, 150.0, 220.0, 330.0])
    for workload, prompt in (("short prompts|512", 120.0), ("long prompts|512", 173.0)):
        outputs = nlr_data.answers(known, mean=180.0, cap=512.0, count=requests)
        for rate in rates:
            run = finite_run.Run(
                requests_per_second=rate, prompt_tokens=prompt, output_tokens=outputs, cached=True, kv_blocks=25_000
            )
            seen = finite_run.serve(run, TRUTH, seed=7)
            row = {
                "workload": workload,
                "rate": rate,
                "prompt_tokens": prompt,
                "output_tokens": float(outputs.mean()),
                "output_cap_tokens": 512.0,
                "requests": float(requests),
            }
            sent = np.arange(requests) / rate
            for kind, values in (
                ("ttft", seen.ttft_seconds),
                ("tpot", seen.tpot_seconds),
                ("e2el", seen.finish_seconds - sent),
            ):
                row |= {f"{kind}_p{p}": float(np.nanpercentile(values, p)) for p in nlr_data.PERCENTILES}
            rows.append(row)
    return pd.DataFrame(rows)


def test_answer_lengths_keep_mean_cap_and_percentiles() -> None:
    known = np.array([60.0, 104.0, 150.0, 222.0, 257.0])
    found = nlr_data.answers(known, mean=185.0, cap=512.0, count=1000)
    assert found.mean() == pytest.approx(185.0, rel=0.01)
    assert found.max() <= 512
    assert np.percentile(found, nlr_data.PERCENTILES) == pytest.approx(known, rel=0.03)


def test_answer_lengths_that_cannot_have_the_mean_are_scaled() -> None:
    known = np.array([60.0, 104.0, 150.0, 222.0, 257.0])
    assert nlr_data.answers(known, mean=100.0, cap=512.0, count=1000).mean() == pytest.approx(100.0, rel=0.01)


def test_calibration_predicts_rates_that_it_did_not_see() -> None:
    cells = made_up((5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 250.0, 500.0))
    held = cells[cells["rate"].isin([40.0, 250.0])]
    training = cells.drop(held.index)
    profile = nlr.node_profile()
    how = nlr.Calibration()
    costs = nlr.calibrate(training, profile, how, seed=0)
    found = nlr.predict(costs, held, training, profile, how, seed=0)
    errors = np.abs(found / held[list(nlr_data.TARGETS)].to_numpy() - 1.0)
    assert np.median(errors) < 0.06


def test_stationary_models_have_no_answer_above_capacity() -> None:
    cells = made_up((2.0, 800.0), requests=60)
    known = [np.array([60.0, 100.0, 150.0, 220.0, 330.0])] * len(cells)
    linear = dataclasses.replace(TRUTH, per_decode_seconds=9e-5, beyond_knee_seconds=0.0)
    found = nlr_baselines.stationary(linear, TRUTH, cells, known, nlr.node_profile())
    low, high = cells["rate"] == 2.0, cells["rate"] == 800.0
    for values in found.values():
        assert np.isfinite(values[low]).all()
        assert np.isnan(values[high]).all()
    measured = cells.loc[low, "tpot_p50"].to_numpy()
    assert found[nlr_baselines.CHECK][low, 2] == pytest.approx(measured, rel=0.25)


def test_interpolation_between_training_rates_is_exact_on_a_power_law() -> None:
    cells = pd.DataFrame({"workload": "w", "rate": [1.0, 10.0, 100.0]})
    for target in nlr_data.TARGETS:
        cells[target] = 0.1 * cells["rate"] ** 0.5
    found = nlr_baselines.interpolation(cells.iloc[[1]], cells.iloc[[0, 2]])
    assert found == pytest.approx(np.full((1, 4), 0.1 * 10**0.5))


def test_a_new_workload_goes_by_the_most_similar_one() -> None:
    cells = made_up((5.0, 20.0), requests=60)
    new = cells.iloc[[0]].assign(workload="new", prompt_tokens=170.0)
    assert set(nlr_data.most_similar(new.iloc[0], cells)["workload"]) == {"long prompts|512"}
    expected = cells[(cells["workload"] == "long prompts|512") & (cells["rate"] == 5.0)][list(nlr_data.TARGETS)]
    assert nlr_baselines.interpolation(new, cells) == pytest.approx(expected.to_numpy())


@pytest.mark.data
def test_measured_runs_are_complete(data_folder: Path) -> None:
    runs = nlr_data.load_runs(data_folder)
    cells = nlr_data.cells_of(runs)
    assert (len(runs), len(cells)) == (1024, 114)
    assert (cells["requests"] == 1000).all()
    lowest = cells[(cells["rate"] == 10) & (cells["workload"] == "long prompts|512")].iloc[0]
    # Two rates with nearly constant token times must tell the same lengths.
    other = cells[(cells["rate"] == 20) & (cells["workload"] == "long prompts|512")].iloc[0]
    assert nlr_data.answer_percentiles(lowest) == pytest.approx(nlr_data.answer_percentiles(other), rel=0.05)


@pytest.mark.data
def test_one_unseen_rate_of_the_measured_runs_is_within_the_goal(data_folder: Path) -> None:
    cells = nlr_data.cells_of(nlr_data.load_runs(data_folder))
    cells = cells[cells["output_cap_tokens"] == 512.0]
    held, training = cells[cells["rate"] == 70.0], cells[cells["rate"] != 70.0]
    profile, how = nlr.node_profile(), nlr.Calibration()
    found = nlr.predict(nlr.calibrate(training, profile, how, seed=0), held, training, profile, how, seed=0)
    errors = np.abs(found / held[list(nlr_data.TARGETS)].to_numpy() - 1.0)
    assert np.median(errors) < nlr.GOAL
