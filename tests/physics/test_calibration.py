import dataclasses

import numpy as np
import pytest

from wattkeeper.cli import fit_sources
from wattkeeper.cli.reference_catalogue import ACCURACY
from wattkeeper.physics import calibration, catalogue, itl, kv, neighbours, profiles, roofline
from wattkeeper.physics.calibration import PairRuns, Score
from wattkeeper.physics.fitting import FitError

BATCHES = np.array([8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
PAIRS = [
    ("meta-llama/Llama-3.1-8B-Instruct", "h100", 1),
    ("meta-llama/Llama-3.1-70B-Instruct", "h100", 4),
    ("Qwen/Qwen3-32B", "b200", 2),
    ("Qwen/Qwen3-30B-A3B", "h100", 2),
    ("Qwen/Qwen3-235B-A22B-FP8", "b200", 4),
    ("nvidia/NVIDIA-Nemotron-Nano-9B-v2", "h100", 1),
]


def made(constants, *, slower=1.0):
    """Runs whose step times are exactly those of the constants."""
    found = []
    for name, card, gpus in PAIRS:
        model, gpu = catalogue.model(name), catalogue.gpu(card)
        runs = itl.LatencyRuns(
            batch=BATCHES,
            prompt_tokens=np.full_like(BATCHES, 200.0),
            output_tokens=np.full_like(BATCHES, 500.0),
            inter_token_seconds=np.ones_like(BATCHES),
        )
        pair = PairRuns(model=model, gpu=gpu, shards=gpus, family=name, workload="made up", runs=runs)
        seconds = calibration._work(pair) @ constants.vector() + calibration._other_seconds(pair)
        runs = dataclasses.replace(runs, inter_token_seconds=seconds * slower)
        found.append(dataclasses.replace(pair, runs=runs))
    return found


def test_constants_come_back_from_steps_made_of_them():
    truth = dataclasses.replace(roofline.CONSTANTS, dense_read=1.3, layer_seconds=4e-5, sequence_seconds=6e-5)
    pairs = made(truth)
    found = calibration.fit_constants(pairs)
    for pair in pairs:
        predicted = calibration._work(pair) @ found.vector() + calibration._other_seconds(pair)
        np.testing.assert_allclose(predicted, pair.runs.inter_token_seconds, rtol=1e-3)
    assert found.dense_read == pytest.approx(1.3, rel=0.05)


def test_no_constant_is_better_than_the_data_sheet():
    found = calibration.fit_constants(made(roofline.CONSTANTS, slower=0.3))
    assert all(getattr(found, name) >= least for name, least in calibration.FASTEST.items())
    with pytest.raises(FitError, match="no runs"):
        calibration.fit_constants([])


def test_workloads_that_the_host_holds_up_are_told_by_a_faster_twin():
    plain = made(roofline.CONSTANTS)
    held_up = dataclasses.replace(made(roofline.CONSTANTS, slower=3.0)[0], workload="slow")
    kept = calibration.without_host_bound([*plain, held_up])
    assert [id(pair) for pair in kept] == [id(pair) for pair in plain]


def test_families_are_judged_unseen():
    scores = calibration.leave_one_out(made(roofline.CONSTANTS))
    assert set(scores) == {"data sheet", "constants", "neighbours"}
    assert scores["constants"].runs == len(PAIRS) * len(BATCHES)
    assert scores["constants"].median < 0.15 < scores["data sheet"].median
    same = Score.of(np.ones(3), np.ones(3))
    assert (same.median, same.root_mean_square_log, same.bias) == (0.0, 0.0, 0.0)


def estimate(name, card, gpus):
    model, gpu = catalogue.model(name), catalogue.gpu(card)
    return roofline.iteration(model, gpu, shards=gpus, demand=kv.demand(model, tensor_parallel=gpus))


def near(name, card, gpus, factor):
    """A neighbour whose fit takes `factor` times the estimate."""
    plain = estimate(name, card, gpus)
    slow = dataclasses.replace(
        plain,
        d0_seconds=plain.d0_seconds * factor,
        dn_seconds_per_decode=plain.decode_seconds_per_sequence * factor,
        dkv_seconds_per_kv_token=plain.dkv_seconds_per_kv_token * factor,
    )
    return neighbours.neighbour(
        model=catalogue.model(name), gpu=catalogue.gpu(card), shards=gpus, fitted=slow, constants=roofline.CONSTANTS
    )


def corrected(name, card, gpus, known):
    plain = estimate(name, card, gpus)
    model, gpu = catalogue.model(name), catalogue.gpu(card)
    better, weight = neighbours.corrected(plain, model=model, gpu=gpu, shards=gpus, neighbours=known)
    return better.d0_seconds / plain.d0_seconds, weight


def test_a_twin_corrects_far_pairs_do_not():
    twin = near("Qwen/Qwen3-8B", "h100", 1, 1.3)
    change, weight = corrected("meta-llama/Llama-3.1-8B-Instruct", "h100", 1, [twin])
    assert 1.1 < change < 1.3
    assert weight > 0.5
    change, weight = corrected("deepseek-ai/DeepSeek-V3", "b200", 8, [twin])
    assert change == pytest.approx(1.0, abs=0.02)
    assert weight < 0.01
    assert corrected("Qwen/Qwen3-8B", "h100", 1, []) == (1.0, 0.0)


def test_another_card_lends_no_trust():
    twin = near("Qwen/Qwen3-8B", "h100", 1, 1.3)
    change, weight = corrected("Qwen/Qwen3-8B", "h200", 1, [twin])
    assert change > 1.05
    assert weight == 0.0


def test_an_absurd_neighbour_is_bounded():
    change, _ = corrected("Qwen/Qwen3-8B", "h100", 1, [near("Qwen/Qwen3-8B", "h100", 1, 50.0)])
    assert change < np.exp(neighbours.LARGEST_CORRECTION) + 0.01


def test_errors_of_estimates_say_whether_neighbours_are_near():
    def error(model, card, gpus):
        engine = profiles.EngineSettings(tensor_parallel_size=gpus)
        return profiles.serving_profile(
            model=model, accelerator=card, gpus_per_replica=gpus, engine=engine
        ).relative_error

    assert error("microsoft/phi-4", "h100", 1) < 0.27
    assert error("microsoft/phi-4", "mi300x", 1) == roofline.RELATIVE_ERROR


@pytest.mark.data
def test_shipped_constants_and_the_accuracy_on_the_page_are_what_the_data_say(data_folder):
    every = calibration.used(fit_sources.pairs(data_folder))
    clean = calibration.without_host_bound(every)
    np.testing.assert_allclose(calibration.fit_constants(clean).vector(), roofline.CONSTANTS.vector(), rtol=0.02)
    scores = calibration.leave_one_out(clean)
    for name, row in zip(("data sheet", "constants", "neighbours"), ACCURACY, strict=False):
        score = scores[name]
        found = (score.median, score.mean, score.p90, score.root_mean_square_log)
        assert score.runs == row[1]
        np.testing.assert_allclose(found, row[2:], atol=0.002)
    assert scores["constants"].root_mean_square_log == pytest.approx(roofline.RELATIVE_ERROR, abs=0.01)
    assert scores["neighbours"].root_mean_square_log == pytest.approx(profiles.NEAR_ERROR, abs=0.01)
