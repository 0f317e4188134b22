import numpy as np
import pytest

from wattkeeper.energy import closed_window, data, ml_energy_runs


def test_a_long_run_is_a_steady_state():
    found = closed_window.window(requests=20_000, batch=20, variation=1.0)
    assert found.age == pytest.approx(closed_window.steady_age(1.0), rel=0.05)
    assert found.begun == pytest.approx(1.0, rel=0.02)


def test_equal_lengths_are_half_done_on_average():
    assert closed_window.steady_age(0.0) == 0.5


def test_a_short_run_ends_while_contexts_are_short():
    ages = [closed_window.window(requests=1024, batch=batch, variation=1.0).age for batch in (8, 64, 256, 512)]
    assert ages == sorted(ages, reverse=True)
    assert ages[-1] < 0.5 * ages[0]


def test_where_lengths_hardly_vary_few_begin_before_the_first_end():
    assert closed_window.window(requests=600, batch=512, variation=0.1).begun < 0.3


@pytest.mark.parametrize("wrong", [{"requests": 7}, {"variation": 0.0}, {"batch": 0}])
def test_a_run_without_a_window_is_refused(wrong):
    with pytest.raises(ValueError, match="no window"):
        closed_window.window(**{"requests": 100, "batch": 8, "variation": 1.0} | wrong)


@pytest.fixture(scope="module")
def table(data_folder):
    return data.load_ml_energy(data_folder)


def test_runs_of_the_benchmark_know_their_window(table):
    found = ml_energy_runs.sequences(table)
    age = (found.context_tokens - found.prompt_tokens) / table["output_tokens"].to_numpy()
    assert ((age > 0.05) & (age < 2.0)).all()
    assert ((found.new_share >= 0.0) & (found.new_share <= 1.0)).all()
    large = (table["max_num_seqs"] >= 1024).to_numpy()
    assert found.new_share[large].mean() < 0.1, "later passes find the prompts of the first"
    omni, vision = (table["model"].str.contains(name) & (table["task"] == "video-chat") for name in ("Omni", "VL-30B"))
    assert found.prompt_tokens[omni].min() > 5.0 * found.prompt_tokens[vision].max()


def test_nothing_measured_enters(table):
    measured = ["joules_per_token", "gpu_watts", "batch", "inter_token_seconds", "tokens_per_second"]
    hidden = table.assign(**dict.fromkeys(measured, np.nan))
    for known, unseen in zip(
        vars(ml_energy_runs.sequences(table)).values(), vars(ml_energy_runs.sequences(hidden)).values(), strict=True
    ):
        np.testing.assert_array_equal(known, unseen)


def test_other_rows_are_in_a_steady_state(table):
    found = ml_energy_runs.sequences(table.drop(columns="source"))
    prompt, output = table["prompt_tokens"], table["output_tokens"]
    assert found.context_tokens == pytest.approx((prompt + output).to_numpy())
    assert found.begun_per_token == pytest.approx((1.0 / output).to_numpy())
    assert (found.new_share == 1.0).all()
