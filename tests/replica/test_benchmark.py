"""Macro-steps are worth their trouble: many times faster than single steps where iterations repeat."""

import numpy as np

from tests.replica.test_capacity import A100_7B, LENGTHS
from wattkeeper.replica import arrivals, benchmark
from wattkeeper.replica.types import ReplicaConfig


def test_light_load_has_many_steps_per_event():
    prompt, output = LENGTHS["conversation"]
    work = arrivals.requests(np.zeros(1500), prompt=prompt, output=output, seed=1)
    light, heavy = benchmark.speeds(
        ReplicaConfig(iteration=A100_7B),
        prompt_tokens=work.prompt_tokens,
        output_tokens=work.output_tokens,
        loads=(0.1, 0.9),
        repeats=2,
    )
    assert light.steps_per_request > 10.0 * heavy.steps_per_request
    assert light.tokens_per_second > 100.0 * light.requests_per_second
