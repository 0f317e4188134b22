"""Terms of the fitted prior, its scales per GPU type and the baselines' scale, at values worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from wattkeeper.energy import baselines, gp, prior, terms
from wattkeeper.energy.gp import Inputs, Kernel
from wattkeeper.energy.terms import Deployment, Steps
from wattkeeper.physics import catalogue, profiles

H100 = catalogue.gpu("nvidia-h100-sxm")


def steps(batch):
    one = np.ones(len(batch))
    return Steps(
        batch=np.asarray(batch, dtype=np.float64), prefill_tokens=0.0 * one, context_tokens=1000.0 * one,
        prompt_tokens=500.0 * one, output_tokens=1000.0 * one, multimodal=0.0 * one,
        begun=0.001 * np.asarray(batch), new_share=one,
    )  # fmt: skip


def term(name, deployment, batch):
    return terms.matrix(deployment, steps([batch]))[0, terms.NAMES.index(name)]


def test_kv_of_eight_billion_parameters():
    model = profiles.architecture("meta-llama/Llama-3.1-8B-Instruct")
    one = Deployment(model=model, gpu=H100, gpus=1)
    # 32 layers, 8 KV heads of 128, key and value, two bytes: 131,072 bytes per token.
    assert term("kv_read", one, 16) == pytest.approx(16 * 1000 * 131_072 / 3.35e12)
    # Each of two ranks attends to half of the sequences.
    assert term("kv_read", replace(one, gpus=2, data_parallel=2), 16) == pytest.approx(8 * 1000 * 131_072 / 3.35e12)
    assert term("decode_compute", one, 16) == pytest.approx(16 * 2 * 8.03e9 / 989e12, rel=0.02)


def test_a_full_tile_takes_what_its_operations_take():
    dense = Deployment(model=profiles.architecture("Qwen/Qwen3-32B"), gpu=H100, gpus=2)
    assert term("small_tiles", dense, 64) == pytest.approx(term("decode_compute", dense, 64))
    assert term("small_tiles", dense, 16) == pytest.approx(term("decode_compute", dense, 64) / 2)


def test_experts_are_read_as_tokens_choose_them():
    model = profiles.architecture("Qwen/Qwen3-30B-A3B-Instruct-2507")
    one = Deployment(model=model, gpu=H100, gpus=1)
    all_read = model.expert_bytes / 3.35e12
    assert term("expert_read", one, 1) == pytest.approx(8 / 128 * all_read)
    assert term("expert_read", one, 4096) == pytest.approx(all_read)


def test_each_gpu_type_has_its_own_scale_and_a_strong_pull_takes_it_away():
    matrix = np.ones((20, 1))
    gpu = ["a"] * 10 + ["b"] * 10
    target = np.repeat([0.2, 0.6], 10)

    def seconds(ridge):
        share = np.full(20, np.log(0.5))
        return prior.fit(matrix, gpu, target, share, power_shares=np.array([0.5]), used=[0], ridge=ridge)[1]

    free = seconds((1e-6, 1e-6))
    assert free.log_value(matrix, gpu) == pytest.approx(target, abs=1e-3)
    # Equal pulls share the levels out: theta = (0.2 + 0.6) / 3.
    assert free.log_value(matrix[:1], ["new"])[0] == pytest.approx(0.8 / 3, abs=1e-3)
    held = seconds((1e-6, 1e3))
    assert held.log_value(matrix, gpu) == pytest.approx(0.4, abs=0.01)
    pulled = seconds((1e4, 1e4))
    assert pulled.log_value(matrix, gpu) == pytest.approx(0.0, abs=0.01)


def test_far_batches_of_a_deployment_share_its_level_alone():
    kernel = Kernel(
        centre=np.zeros(1), spread=np.ones(1), lengths_log=np.zeros(1), amplitude_log=-20.0,
        effects_log=np.log([[0.3, 0.2, 2.0]]), noise_log=-3.0,
    )  # fmt: skip
    rows = Inputs(facts=np.zeros((3, 1)), log2_batch=np.array([3.0, 5.0, 23.0]), groups=gp.members(["m"] * 3))
    found = kernel.covariance(rows, rows)
    assert found[0, 0] == pytest.approx(0.09 + 0.04)
    assert found[0, 1] == pytest.approx(0.09 + 0.04 * np.exp(-0.5))
    assert found[0, 2] == pytest.approx(0.09)


def test_a_baselines_scale_has_the_least_mean_percentage_error():
    rng = np.random.default_rng(3)
    estimate = rng.uniform(1.0, 2.0, 101)
    target = estimate * np.exp(rng.normal(0.5, 0.8, 101))
    found = baselines._scale(target, estimate)
    tried = [np.abs(scale * estimate / target - 1.0).mean() for scale in np.linspace(0.2, 5.0, 2000)]
    assert np.abs(found * estimate / target - 1.0).mean() <= min(tried) + 1e-9
