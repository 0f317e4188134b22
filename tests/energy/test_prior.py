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


def test_a_fit_finds_the_scales_that_made_the_data_and_is_monotone():
    batch = np.array([8.0, 16, 32, 64, 128, 256, 512, 1024])
    matrix = np.vstack(
        [terms.matrix(deployment(gpus=gpus), steps(batch)) for gpus in (1, 2, 4, 8)]
        + [terms.matrix(deployment("Qwen/Qwen3-32B", gpus=gpus), steps(batch)) for gpus in (1, 2, 4, 8)]
    )
    used = [terms.NAMES.index(name) for name in ("layers", "dense_read", "decode_compute", "sequences")]
    truth = matrix[:, used] @ np.exp([0.3, 0.4, 0.6, -0.2])
    found = prior.fit(matrix, ["x"] * len(matrix), np.log(truth), used=used, ridge=(1e-5, 1.0))
    assert np.exp(found.log_value(matrix, ["x"] * len(matrix))) == pytest.approx(truth, rel=0.01)
    # A GPU type without data goes by the common scales.
    assert found.log_value(matrix, ["new"] * len(matrix)) == pytest.approx(
        found.log_value(matrix, ["x"] * len(matrix)), abs=0.05
    )
    assert (np.diff(found.log_value(matrix[:8], ["x"] * 8)) > 0).all()


def test_a_few_wild_rows_do_not_move_the_fit():
    batch = np.geomspace(8, 1024, 40)
    matrix = terms.matrix(deployment(), steps(batch))
    used = [terms.NAMES.index(name) for name in ("layers", "dense_read", "decode_compute")]
    truth = np.log(matrix[:, used].sum(axis=1))
    wild = truth.copy()
    wild[::13] += 2.0
    found = prior.fit(matrix, ["x"] * len(matrix), wild, used=used)
    assert np.abs(found.log_value(matrix, ["x"] * len(matrix)) - truth).max() < 0.15
