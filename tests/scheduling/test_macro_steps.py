"""Macro-steps against iteration by iteration, under every policy, with settings and loads of all kinds."""

import dataclasses
import itertools

import numpy as np
import pytest

from tests.replica.test_stepper import A100_7B
from tests.scheduling.test_stepper import POLICIES, Broken
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.replica import policed
from wattkeeper.replica.types import ReplicaConfig, Requests
from wattkeeper.scheduling.clocked import ClockedWait, Paced
from wattkeeper.scheduling.types import PolicyError, lasting_steps
from wattkeeper.scheduling.wait import Wait, WaitClass

COARSE = tuple(WaitClass(prompt_tokens=200, output_tokens=output, threshold=2) for output in (12, 120))
ALL = [
    *POLICIES,
    Wait(classes=COARSE, stride=7, name="wait-stride-7"),
    ClockedWait(classes=COARSE, stride=4, tpot_seconds=0.03, wait_seconds=0.1, name="clocked-stride-4"),
    Paced(pace_seconds=0.012, wait_seconds=0.2, output_tokens=40, name="paced-short"),
]
CASES = 200
SELDOM_STEADY = {"wait", "nested-wait"}
"""While requests come, each of their batches lets somebody in."""
NO_KV_TERM = dataclasses.replace(A100_7B, dkv_seconds_per_kv_token=0.0)


CHUNKS = {"vllm-v1", "capped", "rate-limited", "paced", "paced-unguarded", "paced-short", "sarathi-512"}
"""Policies that compute prompts in pieces: they get small budgets, prefix hits and limits as well."""


def case(seed: int, chunks: bool) -> tuple[ReplicaConfig, Requests, bool]:
    """Short memory in two of three; bursts, trickles and simultaneous arrivals; known lengths or not."""
    rng = np.random.default_rng((seed, 7))
    size = int(rng.choice([1, 8, 16]))
    longest_prompt, longest_answer = int(rng.choice([8, 60, 200])), int(rng.choice([1, 12, 120]))
    iteration: IterationCoefficients = NO_KV_TERM if seed % 5 == 0 else A100_7B
    seats = int(rng.integers(1, 25))
    chunked = chunks and seed % 4 > 0
    config = ReplicaConfig(
        iteration=iteration,
        max_num_seqs=seats,
        max_num_batched_tokens=max(seats, int(rng.integers(1, 300))) if chunked else 4096,
        long_prefill_token_threshold=int(rng.choice([0, 0, 1, 7, 50])) if chunked else 0,
        chunked_prefill=chunked or seed % 8 > 0,
        max_model_len=int(rng.choice([320, 170])) if chunked else None,
        kv_blocks=max(320, int(rng.choice([1, 2, 40])) * (longest_prompt + longest_answer)) // size + 1,
        block_size=size,
        watermark=float(rng.choice([0.0, 0.05, 0.3])),
    )
    count = int(rng.integers(1, 40))
    gap = rng.choice([1e-9, 0.01, 0.05, 0.3, 3.0])
    arrivals = np.cumsum(rng.exponential(gap, count))
    if seed % 3 == 0:
        arrivals = np.repeat(arrivals[::3], 3)[:count]
    requests = Requests(
        arrival_seconds=arrivals,
        prompt_tokens=rng.integers(1, longest_prompt, count, endpoint=True),
        output_tokens=rng.integers(1, longest_answer, count, endpoint=True),
        hit_tokens=rng.integers(0, 250, count) if chunked and seed % 2 else None,
    )
    return config, requests, bool(seed % 2)


@pytest.mark.parametrize("policy", ALL, ids=lambda policy: policy.name)
def test_macro_steps_equal_iteration_by_iteration(policy):
    needs_lengths = policy.name == "mc-sf" or "wait" in policy.name or "clocked" in policy.name
    asked = {True: 0, False: 0}
    preempted = 0
    for seed in range(CASES):
        config, requests, known = case(seed, policy.name in CHUNKS)
        runs = {}
        for macro in (True, False):
            seen = itertools.count()
            runs[macro] = policed.serve(
                config,
                requests,
                policy,
                known_lengths=known or needs_lengths,
                observer=lambda *_, seen=seen: next(seen),
                macro_steps=macro,
            )
            asked[macro] += next(seen)
        fast, exact = runs[True], runs[False]
        where = f"case {seed}"
        for name in ("first_token_seconds", "finish_seconds"):
            ours, theirs = getattr(fast.outcome, name), getattr(exact.outcome, name)
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-9, err_msg=where)
        assert fast.outcome.preemptions.tolist() == exact.outcome.preemptions.tolist(), where
        assert (fast.peak_blocks, fast.peak_residents) == (exact.peak_blocks, exact.peak_residents), where
        for field in dataclasses.fields(exact.outcome.activity):
            value = getattr(exact.outcome.activity, field.name)
            found = getattr(fast.outcome.activity, field.name)
            assert found == pytest.approx(value, rel=1e-9, abs=1e-12), (where, field.name)
        preempted += exact.outcome.activity.preemptions
    assert asked[True] < (0.95 if policy.name in SELDOM_STEADY else 0.7) * asked[False], asked
    if policy.name in ("vllm-v1", "vllm-v0", "sarathi-512", "paced"):
        assert preempted > 20  # the cases are hard enough


@dataclasses.dataclass(frozen=True)
class Sized:
    """What `lasting_steps` reads of a request."""

    computed_tokens: int


def test_lasting_steps_are_the_most_that_blocks_allow():
    rng = np.random.default_rng(3)
    for _ in range(2000):
        size, most = int(rng.integers(1, 20)), int(rng.integers(1, 100))
        held = [Sized(int(tokens)) for tokens in rng.integers(1, 60, int(rng.integers(1, 9)))]
        blocks = int(rng.integers(0, 30))

        def need(steps, held=held, size=size):
            return sum(-(-(each.computed_tokens + steps) // size) + (-each.computed_tokens // size) for each in held)

        expected = max(steps for steps in range(most + 1) if need(steps) <= blocks)
        assert lasting_steps(held, blocks=blocks, block_size=size, most=most) == expected


def test_repeating_a_prompt_is_an_error_that_names_the_policy():
    requests = Requests(arrival_seconds=np.zeros(1), prompt_tokens=np.array([50]), output_tokens=np.array([3]))
    config = ReplicaConfig(iteration=A100_7B, max_num_seqs=4, max_num_batched_tokens=100)
    with pytest.raises(PolicyError, match="broken"):
        policed.serve(config, requests, Broken("repeat"))
