"""Closed-form capacity against the rate at which a simulated replica saturates."""

import numpy as np
import pytest

from tests.queueing.cases import LENGTHS
from wattkeeper.domain.workload import Workload
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.queueing import capacity, traits
from wattkeeper.queueing.types import Candidates
from wattkeeper.replica.saturation import saturation
from wattkeeper.replica.types import ReplicaConfig

A100_7B = IterationCoefficients(
    d0_seconds=8.79e-3,
    dt_seconds_per_token=5.574e-5,
    dkv_seconds_per_kv_token=2.94e-7,
    da_seconds_per_token_squared=8.4e-9,
)


def shuffled(lengths, count, rng):
    """Every one of the equally likely lengths as often as the others: no sampling error of means."""
    return rng.permutation(np.resize(np.rint(lengths.tokens).astype(int), count))


def compared(kind, seqs, budget, kv):
    """Closed form over simulation, and the simulation."""
    prompt, output = LENGTHS[kind]
    rng = np.random.default_rng(3)
    prompts, outputs = (shuffled(lengths, max(3000, 12 * seqs), rng) for lengths in (prompt, output))
    config = ReplicaConfig(iteration=A100_7B, max_num_seqs=seqs, max_num_batched_tokens=budget, kv_blocks=kv // 16)
    simulated = saturation(config, prompt_tokens=prompts, output_tokens=outputs)
    moments = traits.of([Workload(requests_per_second=1.0, prompt=prompt, output=output)], [1])
    candidate = Candidates(
        replicas=np.ones(1),
        power_cap_watts=np.full(1, np.nan),
        clock_ratio=np.ones(1),
        max_num_seqs=np.full(1, float(seqs)),
        max_num_batched_tokens=np.full(1, float(budget)),
        kv_capacity_tokens=np.full(1, float(kv)),
    )
    limits = capacity.limits(moments, candidate)
    times = capacity.coefficients(A100_7B, moments, np.ones(1))
    closed = capacity.requests_per_second(moments, limits, times)[0]
    return closed / simulated.requests_per_second, simulated, bool(limits.kv_bound[0])


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize(("seqs", "budget"), [(16, 2048), (64, 8192)])
def test_slots(kind, seqs, budget):
    ratio, simulated, kv_bound = compared(kind, seqs, budget, 400_000)
    assert not kv_bound
    assert ratio == pytest.approx(1.0, abs=0.03)
    assert simulated.sequences == pytest.approx(seqs, rel=0.25)


@pytest.mark.parametrize(("kind", "seqs"), [("code", 256), ("fixed", 256), ("conversation", 512)])
def test_budget(kind, seqs):
    ratio, simulated, kv_bound = compared(kind, seqs, 512, 400_000)
    assert not kv_bound
    assert ratio == pytest.approx(1.0, abs=0.015)
    assert simulated.preempted_per_request < 0.01


@pytest.mark.parametrize("kind", LENGTHS)
def test_memory_costs_what_is_computed_again(kind):
    ratio, simulated, kv_bound = compared(kind, 256, 2048, 40_000)
    assert kv_bound or kind == "fixed"
    assert 0.85 < ratio < 1.1
    assert (simulated.recomputed > 0.05) == (kind in {"conversation", "chat"})


def test_too_few_requests_for_a_rate():
    config = ReplicaConfig(iteration=A100_7B, kv_blocks=8)
    with pytest.raises(ValueError, match="too few"):
        saturation(config, prompt_tokens=np.full(50, 512), output_tokens=np.full(50, 20))
