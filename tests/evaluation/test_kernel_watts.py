"""Watts of kernels by the roofline's shares: made-up kernels, and the real ones where the data folder has them."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from wattkeeper.cli import main
from wattkeeper.evaluation import kernel_data, kernel_watts
from wattkeeper.evaluation.kernel_watts import Kernels
from wattkeeper.physics import catalogue, kv, roofline

H200, B200 = catalogue.gpu("nvidia-h200-sxm"), catalogue.gpu("nvidia-b200")


def kernels(*, reading=0.0, computing=0.0, gpu=H200, **changes):
    one = np.ones(1)
    made = {
        "gpu": gpu, "kind": "gemm", "seconds": one, "watts": 300.0 * one, "reading_seconds": reading * one,
        "computing_seconds": computing * one, "charged_seconds": computing * one, "shape": np.array(["a"]),
    }  # fmt: skip
    return Kernels(**made | changes)


@pytest.mark.parametrize(
    ("work", "share"),
    [
        ({"reading": 1.0}, 0.186 + 0.46),
        ({"computing": 1.0}, 0.98),
        ({}, 0.186 + 0.46),
        ({"reading": 0.5, "computing": 0.5}, 0.186 + 0.5 * 0.46 + 0.5 * (0.98 - 0.186)),
        ({"reading": 1.0, "computing": 1.0}, 1.0),
        ({"computing": 1.0, "charged_seconds": np.zeros(1)}, 0.186),
    ],
)
def test_physics_charges_the_shares_of_the_roofline(work, share):
    assert kernel_watts.physics_watts(kernels(**work)) == pytest.approx(share * 700.0)


def test_the_shares_are_those_that_the_roofline_composes_energy_from():
    """A model that only reads weights, on a card without overheads, draws what a reading kernel does."""
    spec = catalogue.model("meta-llama/Llama-3.1-8B-Instruct")
    none = dataclasses.replace(
        roofline.Constants(), **dict.fromkeys(("compute", "step_seconds", "layer_seconds", "sequence_seconds"), 0.0)
    )
    demand = kv.demand(spec, tensor_parallel=1)
    energy = roofline.energy(spec, H200, shards=1, demand=demand, constants=none)
    iteration = roofline.iteration(spec, H200, shards=1, demand=demand, constants=none)
    watts = energy.static_watts + energy.e0_joules / iteration.d0_seconds
    assert kernel_watts.physics_watts(kernels(reading=1.0)) == pytest.approx(watts, rel=1e-3)


def test_kernels_are_grouped_by_what_most_of_their_time_goes_to():
    groups = [kernels(**work).group()[0] for work in ({"reading": 0.6}, {"computing": 0.6}, {"reading": 0.4})]
    assert groups == ["reading", "computing", "waiting"]


def frame(**changes):
    gemm = {"gemm_dtype": "fp8", "m": 8, "n": 4096, "k": 2048, "latency": 0.02, "power": 350.0}
    return pd.DataFrame([gemm | changes])


def test_work_of_matrix_products():
    made = kernel_watts._kernels(frame(), H200, "gemm")
    assert made.seconds == pytest.approx(2e-5)
    assert made.reading_seconds == pytest.approx(4096 * 2048 / 4.8e12)
    assert made.computing_seconds == pytest.approx(1.2 * 2 * 8 * 4096 * 2048 / 1979e12)
    assert made.charged_seconds == made.computing_seconds
    double = kernel_watts._kernels(frame(gemm_dtype="bfloat16"), H200, "gemm")
    assert double.reading_seconds == pytest.approx(2 * made.reading_seconds)


def attention(**changes):
    row = {
        "batch_size": 4, "isl": 1, "step": 999, "num_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "window_size": 0, "kv_cache_dtype": "bfloat16", "latency": 0.1, "power": 300.0,
    }  # fmt: skip
    return pd.DataFrame([row | changes])


def test_work_of_attention():
    decode = kernel_watts._kernels(attention(), H200, "generation_attention")
    assert decode.reading_seconds == pytest.approx(4 * 1000 * 8 * 128 * 2 * 2 / 4.8e12)
    assert decode.computing_seconds == pytest.approx(4 * 4 * 1000 * 32 * 128 / (0.45 * 989e12))
    assert decode.charged_seconds == 0.0
    eight = kernel_watts._kernels(attention(kv_cache_dtype="fp8"), H200, "generation_attention")
    assert eight.reading_seconds == pytest.approx(decode.reading_seconds / 2)
    window = kernel_watts._kernels(attention(window_size=100), H200, "generation_attention")
    assert window.reading_seconds == pytest.approx(decode.reading_seconds / 10)
    prompt = kernel_watts._kernels(attention(isl=1000, step=0), H200, "context_attention")
    assert prompt.computing_seconds == pytest.approx(500 * decode.computing_seconds)


def test_work_of_routed_experts():
    row = {
        "moe_dtype": "bfloat16", "num_tokens": 1, "hidden_size": 4096, "inter_size": 1024, "topk": 8,
        "num_experts": 64, "moe_tp_size": 2, "moe_ep_size": 1, "latency": 0.1, "power": 300.0,
    }  # fmt: skip
    one = kernel_watts._kernels(pd.DataFrame([row]), H200, "moe")
    values = 3 * 4096 * 1024 / 2
    assert one.reading_seconds == pytest.approx(1.05 * 8 * values * 2 / 4.8e12)
    assert one.computing_seconds == pytest.approx(1.2 * 2 * 8 * values / 989e12)
    many = kernel_watts._kernels(pd.DataFrame([row | {"num_tokens": 4096}]), H200, "moe")
    assert many.reading_seconds == pytest.approx(8 * one.reading_seconds)
    apart = kernel_watts._kernels(pd.DataFrame([row | {"moe_ep_size": 4}]), H200, "moe")
    assert apart.reading_seconds == pytest.approx(one.reading_seconds / 4)


def test_baselines_are_fitted_to_the_other_card(monkeypatch):
    rng = np.random.default_rng(0)

    def card(gpu, share):
        count = 50
        seconds = rng.uniform(1e-5, 1e-3, count)
        return kernels(
            gpu=gpu, seconds=seconds, watts=np.full(count, share * gpu.tdp_watts), reading_seconds=0.9 * seconds,
            computing_seconds=0.01 * seconds, charged_seconds=0.01 * seconds,
            shape=np.arange(count).astype(np.str_),
        )  # fmt: skip

    monkeypatch.setattr(kernel_watts, "load", lambda *_, **__: [card(H200, 0.5), card(B200, 0.8)])
    (held,) = kernel_watts.held_out(None, report=lambda _: None)
    assert held.split == "matrix products, reading"
    first, second = held.fold == 0, held.fold == 1
    for name in (kernel_watts.MEAN, kernel_watts.LOG_LINEAR):
        np.testing.assert_allclose(held.predicted[name][first], 0.8 * 700.0, rtol=1e-3)
        np.testing.assert_allclose(held.predicted[name][second], 0.5 * 1000.0, rtol=1e-3)
    assert set(held.predicted[kernel_watts.HARDWARE][second]) == {1000.0}
    assert held.notes[0].startswith("nvidia-h200-sxm: measured 0.50 (0.50-0.50) of the limit, physics 0.6")
    run = CliRunner().invoke(main.app, ["evaluate", "kernels", "--data", ".", "--output", "json"])
    assert run.exit_code == 0
    assert '"split": "matrix products, reading"' in run.stdout


@pytest.mark.data
def test_large_products_draw_the_limit(data_folder):
    report = []
    loaded = kernel_watts.load(data_folder, report=report.append)
    assert len(loaded) == len(kernel_data.POWERS.tables)
    assert any("31214 of 46821 kernels of routed experts left out" in line for line in report)
    for each in loaded:
        if each.kind == "gemm":
            large = each.where((each.group() == kernel_watts.COMPUTES) & (each.seconds > 1e-3))
            assert np.median(large.watts) == pytest.approx(0.98 * each.gpu.tdp_watts, rel=0.02)
