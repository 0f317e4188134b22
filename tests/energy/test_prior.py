import numpy as np
import pytest

from wattkeeper.energy import prior, terms
from wattkeeper.energy.terms import Deployment, Steps
from wattkeeper.physics import catalogue, profiles


def steps(batch):
    one = np.ones(len(batch))
    return Steps(
        batch=np.asarray(batch, dtype=np.float64),
        prefill_tokens=0.5 * np.asarray(batch, dtype=np.float64),
        context_tokens=400.0 * one,
        prompt_tokens=150.0 * one,
        output_tokens=300.0 * one,
        multimodal=0.0 * one,
        begun=np.asarray(batch, dtype=np.float64) / 300.0,
        new_share=one,
    )


def deployment(model="meta-llama/Llama-3.1-8B-Instruct", *, gpus=1):
    return Deployment(model=profiles.architecture(model), gpu=catalogue.gpu("nvidia-h100-sxm"), gpus=gpus)


@pytest.mark.parametrize(
    "model",
    ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B-Instruct-2507", "openai/gpt-oss-20b",
     "nvidia/NVIDIA-Nemotron-Nano-9B-v2"],
)  # fmt: skip
def test_every_term_is_a_time_and_grows_with_the_batch(model):
    matrix = terms.matrix(deployment(model), steps([1, 8, 64, 512, 2048]))
    assert matrix.shape == (5, len(terms.NAMES))
    assert np.isfinite(matrix).all()
    assert (matrix >= 0).all()
    assert (np.diff(matrix, axis=0) >= -1e-15).all()


def test_reading_dense_weights_takes_bytes_over_bandwidth():
    found = terms.matrix(deployment(), steps([1]))[0, terms.NAMES.index("dense_read")]
    # 8.03e9 parameters less the embedding of 128,256 x 4,096, two bytes each, at 3.35 TB/s.
    assert found == pytest.approx(2 * (8.03e9 - 128_256 * 4096) / 3.35e12, rel=0.02)


def fitted(matrix, seconds_log, share_log, *, used=None, start=0.6, gpu=None, ridge=None):
    """Joules and seconds."""
    return prior.fit(
        matrix, gpu or ["x"] * len(matrix), seconds_log, share_log, power_shares=np.full(matrix.shape[1], start),
        used=range(matrix.shape[1]) if used is None else used, **({} if ridge is None else {"ridge": ridge}),
    )  # fmt: skip


def test_a_fit_finds_the_scales_and_shares_that_made_the_data_and_is_monotone():
    batch = np.array([8.0, 16, 32, 64, 128, 256, 512, 1024])
    matrix = np.vstack(
        [terms.matrix(deployment(gpus=gpus), steps(batch)) for gpus in (1, 2, 4, 8)]
        + [terms.matrix(deployment("Qwen/Qwen3-32B", gpus=gpus), steps(batch)) for gpus in (1, 2, 4, 8)]
    )
    used = [terms.NAMES.index(name) for name in ("layers", "dense_read", "decode_compute", "sequences")]
    parts = matrix[:, used] * np.exp([0.3, 0.4, 0.6, -0.2])
    seconds, share = parts.sum(axis=1), parts @ np.array([0.4, 0.7, 0.95, 0.2]) / parts.sum(axis=1)
    joules, found = fitted(matrix, np.log(seconds), np.log(share), used=used, ridge=(1e-5, 1.0))
    here, new = ["x"] * len(matrix), ["new"] * len(matrix)
    assert np.exp(found.log_value(matrix, here)) == pytest.approx(seconds, rel=0.01)
    assert np.exp(joules.log_value(matrix, here)) == pytest.approx(seconds * share / 0.6, rel=0.01)
    for each in (joules, found):
        # A GPU type without data goes by the common scales.
        assert each.log_value(matrix, new) == pytest.approx(each.log_value(matrix, here), abs=0.05)
        assert (np.diff(each.log_value(matrix[:8], ["x"] * 8)) > 0).all()


def test_a_few_wild_rows_do_not_move_the_fit():
    batch = np.geomspace(8, 1024, 40)
    matrix = terms.matrix(deployment(), steps(batch))
    used = [terms.NAMES.index(name) for name in ("layers", "dense_read", "decode_compute")]
    truth = np.log(matrix[:, used].sum(axis=1))
    wild = truth.copy()
    wild[::13] += 2.0
    for each in fitted(matrix, wild, np.full(40, np.log(0.6)), used=used):
        assert np.abs(each.log_value(matrix, ["x"] * 40) - truth).max() < 0.15


@pytest.mark.parametrize("share", [0.05, 0.5, 1.3])
def test_watts_are_never_above_the_limit(share):
    rng = np.random.default_rng(0)
    matrix = rng.uniform(0.1, 1.0, (60, 3))
    gpu = ["a", "b"] * 30
    joules, seconds = fitted(matrix, np.log(matrix.sum(axis=1)), np.full(60, np.log(share)), gpu=gpu)
    for name in ("a", "b", "new"):
        watts = np.exp(joules.log_value(matrix, [name] * 60) - seconds.log_value(matrix, [name] * 60)) * 0.6
        assert (watts <= 1.0 + 1e-12).all()
    assert watts.mean() == pytest.approx(min(share, 1.0), abs=0.1)


def test_a_share_that_no_run_tells_of_stays_where_kernels_put_it():
    matrix = np.column_stack([np.linspace(1.0, 2.0, 30), np.zeros(30)])
    joules, seconds = prior.fit(
        matrix, ["x"] * 30, np.log(matrix[:, 0]), np.full(30, np.log(0.8)), power_shares=np.array([0.5, 0.3]),
        used=[0, 1],
    )  # fmt: skip
    drawn = 0.6 * np.exp(np.array(joules.theta) - np.array(seconds.theta))
    assert drawn[1] == pytest.approx(0.3)
    assert drawn[0] == pytest.approx(0.8, abs=0.1)


def test_every_term_draws_a_share_of_the_limit():
    assert terms.POWER_SHARES.shape == (len(terms.NAMES),)
    assert ((terms.POWER_SHARES > 0.0) & (terms.POWER_SHARES < 1.0)).all()
    assert terms.POWER_SHARES[terms.NAMES.index("dense_read")] == 0.72
