import dataclasses

import numpy as np
import pytest

from wattkeeper.evaluation import finite_run
from wattkeeper.evaluation.finite_run import Costs, Run
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.replica import stepper
from wattkeeper.replica.types import ReplicaConfig, Requests

COSTS = Costs(
    fixed_seconds=0.018,
    per_decode_seconds=3e-5,
    per_kv_token_seconds=3e-8,
    per_prompt_token_seconds=9e-5,
    client_seconds=0.006,
    front_end_seconds=0.0,
    knee_sequences=200.0,
    beyond_knee_seconds=0.0,
    mixed_seconds=0.0,
    delivery_seconds=0.0,
)


def a_run(*, rate: float = 60.0, cached: bool = True, count: int = 400) -> Run:
    return Run(
        requests_per_second=rate,
        prompt_tokens=120.0,
        output_tokens=np.linspace(20, 400, count).astype(np.int64),
        cached=cached,
        kv_blocks=28_000,
    )


def literal(run: Run, costs: Costs, *, seed: int) -> finite_run.Latencies:
    """The same run iteration by iteration, for few requests without memory limits: an independent loop."""
    rng = np.random.default_rng(seed)
    outputs = rng.permutation(run.output_tokens)
    count = len(outputs)
    sent = np.arange(count) / run.requests_per_second
    prompts = np.maximum(1, np.rint(run.prompt_tokens * rng.lognormal(-0.125, 0.5, count))).astype(int)
    free = 0.0
    reaches = []
    for time in sent:
        free = max(free, time) + costs.front_end_seconds
        reaches.append(free)
    now, waiting = 0.0, 0
    left: dict[int, int] = {}
    context: dict[int, int] = {}
    first, last = np.zeros(count), np.zeros(count)
    at_first, at_last = np.zeros(count), np.zeros(count)
    done = 0
    while done < count:
        if not left and reaches[waiting] > now:
            now = reaches[waiting]
        admitted = []
        while waiting < count and reaches[waiting] <= now:
            admitted.append(waiting)
            waiting += 1
        computed = sum(prompts[i] - (min(prompts[i], prompts[i] - 1) // 16 * 16 if run.cached else 0) for i in admitted)
        number = len(left)
        reading = sum(context.values()) + number
        now += (
            costs.fixed_seconds
            + costs.per_decode_seconds * number
            + costs.beyond_knee_seconds * max(0.0, number - costs.knee_sequences)
            + costs.per_kv_token_seconds * reading
            + costs.per_prompt_token_seconds * computed
            + costs.mixed_seconds * bool(admitted)
        )
        for i in list(left):
            left[i] -= 1
            context[i] += 1
            if left[i] == 0:
                last[i] = now
                at_last[i] = number + len(admitted)
                done += 1
                del left[i], context[i]
        for i in admitted:
            first[i] = now
            left[i], context[i] = outputs[i] - 1, prompts[i]
        for i in admitted:
            at_first[i] = len(left)
    seen_first = first + costs.client_seconds + costs.delivery_seconds * at_first
    seen_last = last + costs.client_seconds + costs.delivery_seconds * at_last
    return finite_run.Latencies(
        ttft_seconds=seen_first - sent, tpot_seconds=(seen_last - seen_first) / (outputs - 1), finish_seconds=seen_last
    )


def test_without_knee_the_slices_are_the_steppers_own_run() -> None:
    run = a_run()
    found = finite_run.serve(run, COSTS, seed=3)
    rng = np.random.default_rng(3)
    outputs = rng.permutation(run.output_tokens)
    prompts = np.maximum(1, np.rint(run.prompt_tokens * rng.lognormal(-0.125, 0.5, len(outputs)))).astype(np.int64)
    iteration = IterationCoefficients(
        d0_seconds=COSTS.fixed_seconds,
        dt_seconds_per_token=COSTS.per_prompt_token_seconds,
        dkv_seconds_per_kv_token=COSTS.per_kv_token_seconds,
        da_seconds_per_token_squared=0.0,
        dn_seconds_per_decode=COSTS.per_decode_seconds,
    )
    sent = np.arange(len(outputs)) / run.requests_per_second
    outcome = stepper.simulate(
        ReplicaConfig(iteration=iteration, max_num_seqs=1024, max_num_batched_tokens=8192, kv_blocks=28_000),
        Requests(arrival_seconds=sent, prompt_tokens=prompts, output_tokens=outputs, hit_tokens=prompts),
    )
    np.testing.assert_allclose(found.ttft_seconds, outcome.ttft_seconds + COSTS.client_seconds, atol=1e-9)
    np.testing.assert_allclose(found.tpot_seconds, outcome.tpot_seconds, atol=1e-9)


@pytest.mark.parametrize(("rate", "cached"), [(5.0, True), (5.0, False), (60.0, True), (60.0, False), (1000.0, True)])
def test_knee_mixed_steps_and_client_agree_with_a_literal_loop(rate: float, cached: bool) -> None:
    costs = dataclasses.replace(
        COSTS,
        beyond_knee_seconds=7e-5,
        knee_sequences=60.0,
        mixed_seconds=1e-3,
        front_end_seconds=1e-3,
        delivery_seconds=5e-5,
    )
    run = a_run(rate=rate, cached=cached, count=120)
    found, expected = finite_run.serve(run, costs, seed=1), literal(run, costs, seed=1)
    # Within a slice of a quarter of a second the batch may fall below the knee unnoticed.
    np.testing.assert_allclose(found.ttft_seconds, expected.ttft_seconds, rtol=0.01)
    np.testing.assert_allclose(found.tpot_seconds, expected.tpot_seconds, rtol=0.01)


def test_a_rate_above_the_front_ends_makes_requests_wait_for_it() -> None:
    slow = dataclasses.replace(COSTS, front_end_seconds=2e-3)
    found = finite_run.serve(a_run(rate=1000.0), slow, seed=0)
    assert found.ttft_seconds[-1] > 400 * (2e-3 - 1e-3)


def test_costs_survive_the_way_through_an_array() -> None:
    assert Costs.of(COSTS.array()) == COSTS
