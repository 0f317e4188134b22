import numpy as np
import pytest

from wattkeeper.domain.workload import FloatArray
from wattkeeper.evaluation import closed_loop
from wattkeeper.evaluation.closed_loop import Points
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.replica.stepper import Replica
from wattkeeper.replica.types import ReplicaConfig, Requests

QUIET = np.array([0.0, 0.0, -12.0])


def points(*, decode: float = 0.02, prompts_per_step: float = 0.2, prompt: float = 0.03, budget: float = 1.0) -> Points:
    return Points(
        decode_seconds=np.array([decode]),
        prompts_per_step=np.array([prompts_per_step]),
        prompt_seconds=np.array([prompt]),
        budget_seconds=np.array([budget]),
    )


def test_the_mean_step_is_decode_plus_prompts() -> None:
    found = closed_loop.latencies(points(), 0, QUIET)
    assert found[-1] == pytest.approx(0.02 + 0.2 * 0.03, rel=0.02)


def test_percentiles_leave_the_decode_step_where_prompts_become_frequent() -> None:
    rare = closed_loop.latencies(points(prompts_per_step=0.01), 0, QUIET)
    often = closed_loop.latencies(points(prompts_per_step=0.08), 0, QUIET)
    always = closed_loop.latencies(points(prompts_per_step=8.0), 0, QUIET)
    assert rare[2] == pytest.approx(0.02, rel=1e-3)
    assert often[0] == pytest.approx(0.02, rel=1e-3)
    assert often[2] > 0.03
    assert always[0] > 0.2


def test_the_token_budget_bounds_a_step() -> None:
    found = closed_loop.latencies(points(prompts_per_step=20.0, budget=0.1), 0, QUIET)
    assert found[3] == pytest.approx(0.12, rel=1e-3)


@pytest.mark.parametrize("truth", [(-0.2, 1.0, -3.2), (0.4, 0.2, -2.5)])
def test_calibration_finds_what_made_the_run(truth: tuple[float, float, float]) -> None:
    where = points(prompts_per_step=0.3)
    measured = closed_loop.latencies(where, 0, np.array(truth))
    found = closed_loop.calibrated(where, 0, measured)
    assert closed_loop.latencies(where, 0, found) == pytest.approx(measured, rel=0.06)
    assert found[0] == pytest.approx(truth[0], abs=0.05)


def test_a_run_without_prompts_in_its_steps_leaves_their_cost_at_the_prior() -> None:
    where = points(prompts_per_step=1e-4)
    measured = closed_loop.latencies(where, 0, np.array([0.3, 0.0, -3.2]))
    found = closed_loop.calibrated(where, 0, measured, (0.0, 1.5, -3.2))
    assert found[1] == pytest.approx(1.5, abs=0.3)


def stepped(*, sequences: int, answer: float, prompt: float, seed: int) -> FloatArray:
    """Iteration times of the exact stepper in saturation, each counted once."""
    rng = np.random.default_rng(seed)
    count = 40 * sequences
    shape = 1.0 / 0.7**2
    prompts = np.maximum(1, rng.gamma(shape, prompt / shape, count)).astype(np.int64)
    replica = Replica(
        ReplicaConfig(
            iteration=IterationCoefficients(
                d0_seconds=0.01,
                dt_seconds_per_token=5e-5,
                dkv_seconds_per_kv_token=0.0,
                da_seconds_per_token_squared=0.0,
                dn_seconds_per_decode=1e-4,
            ),
            max_num_seqs=sequences,
            max_num_batched_tokens=8192,
            kv_blocks=10**6,
        ),
        macro_steps=False,
    )
    replica.load(
        Requests(
            arrival_seconds=np.zeros(count),
            prompt_tokens=prompts,
            output_tokens=np.maximum(2, rng.exponential(answer, count)).astype(np.int64),
        )
    )
    times = [0.0]
    while replica.outstanding > sequences:
        replica.advance(replica.now + 1e-12)
        times.append(replica.now)
    return np.diff(times)[len(times) // 5 :]


@pytest.mark.parametrize(("sequences", "answer"), [(16, 400.0), (64, 200.0), (128, 100.0)])
def test_the_closed_form_is_the_exact_steppers_distribution(sequences: int, answer: float) -> None:
    steps = stepped(sequences=sequences, answer=answer, prompt=600.0, seed=4)
    where = points(
        decode=0.01 + 1e-4 * sequences, prompts_per_step=sequences / answer, prompt=600 * 5e-5, budget=8192 * 5e-5
    )
    found = closed_loop.latencies(where, 0, QUIET)
    expected = np.append(np.percentile(steps, closed_loop.PERCENTILES), steps.mean())
    assert found[[0, 1, 2, 4]] == pytest.approx(expected[[0, 1, 2, 4]], rel=0.12)
