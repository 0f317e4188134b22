"""The fluid path of a finite run, against what can be worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from wattkeeper.energy import estimate, points


def run(*, prompt=120.0, output=200.0, cap=1024.0, rate=500.0, requests=1000.0):
    table = pd.DataFrame(
        {
            "model": "meta-llama/Llama-3.1-70B-Instruct", "parameters": np.nan, "activated_parameters": np.nan,
            "gpu": "nvidia-h100-sxm", "num_gpus": 4.0, "data_parallel": 1.0,
            "weight_precision": "bfloat16", "group_workload": "w",
            "prompt_tokens": [prompt], "output_tokens": output, "output_cap_tokens": cap, "requests_per_second": rate,
            "requests": requests,
        }
    )  # fmt: skip
    return estimate.open_runs(table)[0]


def test_a_sequence_holds_its_prompt_and_half_its_answer():
    found = run(prompt=1000.0, output=200.0)
    assert found.points.kv_tokens / found.points.batch == pytest.approx(1100.0)


def test_answers_of_many_lengths_drain_longer_than_equal_ones():
    """A cap at the mean leaves answers of one length; a far one leaves a tail that runs on nearly alone."""
    equal, scattered = run(cap=201.0), run(cap=1024.0)
    assert scattered.tokens_per_second < 0.8 * equal.tokens_per_second
    assert scattered.points.batch < equal.points.batch


def test_the_cut_lognormal_has_the_mean_that_was_asked_for():
    mean, cap = np.array([200.0, 500.0, 30.0]), np.array([256.0, 1024.0, 256.0])
    median = estimate._lognormal_scale(mean, cap)
    draws = median[:, None] * np.exp(0.8 * np.random.default_rng(0).standard_normal((3, 200_000)))
    assert np.minimum(draws, cap[:, None]).mean(axis=1) == pytest.approx(mean, rel=0.01)


def test_energy_per_token_falls_with_the_rate():
    joules = [4.0 * each.busy_watts[0] / each.tokens_per_second[0] for each in (run(rate=r) for r in (2.0, 10.0, 50.0))]
    assert joules[0] > 1.5 * joules[1] > 2.0 * joules[2]


def test_watts_are_those_of_a_steady_batch_while_nothing_ramps_or_drains():
    """Requests come for 1,000 s and stay for a few, so that the path is nearly all steady."""
    steady = run(rate=5.0, requests=5000.0)
    state = points.closed_loop(
        steady.points.profile, batch=steady.points.batch, prompt_tokens=np.array([120.0]),
        output_tokens=np.array([200.0]), multimodal=np.zeros(1),
    )  # fmt: skip
    assert steady.tokens_per_second == pytest.approx(1000.0, rel=0.03)
    assert steady.busy_watts == pytest.approx(state.busy_watts, rel=0.03)
