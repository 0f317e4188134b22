"""What simulating a scheduling policy costs: macro-steps against iteration by iteration, in one run.

Processor time of one core, the best of some rounds, for prompts of 512 tokens with short and long answers at a tenth
and half of the saturated rate of one H100 (Llama 3.1 8B).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.physics.profiles import serving_profile
from wattkeeper.replica import policed, saturation
from wattkeeper.replica.arrivals import poisson
from wattkeeper.replica.types import ReplicaConfig, Requests
from wattkeeper.scheduling.baselines import Orca, Sarathi, VllmV0
from wattkeeper.scheduling.clocked import ClockedWait, Paced
from wattkeeper.scheduling.forecast_memory import McSf
from wattkeeper.scheduling.greedy import Capped, RateLimited, VllmV1
from wattkeeper.scheduling.nested import NestedWait, WaitSegment
from wattkeeper.scheduling.types import Policy
from wattkeeper.scheduling.wait import Wait, WaitClass

_SATURATING = 4000
"""Requests that tell the saturated rate."""
_PROMPT = 512


@dataclass(frozen=True, kw_only=True)
class PolicySpeed:
    """One policy with answers of one length."""

    policy: str
    output_tokens: int
    load: float
    """Arrival rate over that of saturation."""
    steps_per_request: float
    """Iterations of the engine."""
    microseconds_per_request: float
    """Of processor time, with macro-steps."""
    single_microseconds_per_request: float
    """The same run, every iteration stepped by itself."""

    @property
    def ratio(self) -> float:
        """How many times faster macro-steps are."""
        return self.single_microseconds_per_request / self.microseconds_per_request


def policies(output_tokens: int) -> list[Policy]:
    """One of each kind; thresholds of one per stage, which half the saturated rate allows."""
    classes = (WaitClass(prompt_tokens=_PROMPT, output_tokens=output_tokens, threshold=1),)
    return [
        VllmV1(token_budget=2048),
        VllmV0(token_budget=8192),
        Sarathi(),
        Orca(most_output_tokens=output_tokens),
        Capped(limit=200, token_budget=2048),
        RateLimited(admissions=4, token_budget=2048),
        McSf(),
        Wait(classes=classes),
        NestedWait(segments=(WaitSegment(to_output_tokens=output_tokens, threshold=1),)),
        ClockedWait(classes=classes, tpot_seconds=0.025, wait_seconds=0.1),
        Paced(pace_seconds=0.025, wait_seconds=0.1, output_tokens=output_tokens, token_budget=2048),
    ]


def measure(
    *,
    outputs: Sequence[int] = (20, 200, 1000),
    loads: Sequence[float] = (0.1, 0.5),
    requests: int = 200,
    rounds: int = 2,
) -> list[PolicySpeed]:
    """All policies with answers of these lengths at these loads."""
    profile = serving_profile(
        model="meta-llama/Llama-3.1-8B-Instruct",
        accelerator="nvidia-h100-sxm",
        gpus_per_replica=1,
        engine=EngineSettings(),
    )
    config = ReplicaConfig(
        iteration=profile.iteration, max_num_seqs=256, max_num_batched_tokens=8192, kv_blocks=420_000 // 16
    )
    found = []
    for output in outputs:
        lengths = np.full(_SATURATING, _PROMPT), np.full(_SATURATING, output)
        full = saturation.saturation(config, prompt_tokens=lengths[0], output_tokens=lengths[1]).requests_per_second
        for load in loads:
            asked = Requests(
                arrival_seconds=poisson(rate=load * full, count=requests, seed=0),
                prompt_tokens=lengths[0][:requests],
                output_tokens=lengths[1][:requests],
            )
            found += [_speed(config, asked, policy, output, load, rounds) for policy in policies(output)]
    return found


def _speed(
    config: ReplicaConfig, asked: Requests, policy: Policy, output: int, load: float, rounds: int
) -> PolicySpeed:
    seconds, steps = {}, 0
    for macro_steps in (True, False):
        runs = []
        for _ in range(rounds):
            start = time.process_time()
            served = policed.serve(config, asked, policy, known_lengths=True, macro_steps=macro_steps)
            runs.append(time.process_time() - start)
            steps = served.outcome.activity.steps
        seconds[macro_steps] = 1e6 * min(runs) / len(asked)
    return PolicySpeed(
        policy=policy.name,
        output_tokens=output,
        load=load,
        steps_per_request=steps / len(asked),
        microseconds_per_request=seconds[True],
        single_microseconds_per_request=seconds[False],
    )


def table(speeds: Sequence[PolicySpeed]) -> Table:
    """For people."""
    shown = Table(title="simulated scheduling policies, processor time")
    for heading in ("policy", "answer", "load", "steps/request", "us/request", "with single steps", "ratio"):
        shown.add_column(heading, justify="left" if heading == "policy" else "right")
    for speed in speeds:
        shown.add_row(
            speed.policy,
            str(speed.output_tokens),
            f"{speed.load:.0%}",
            f"{speed.steps_per_request:.1f}",
            f"{speed.microseconds_per_request:,.0f}",
            f"{speed.single_microseconds_per_request:,.0f}",
            f"{speed.ratio:.1f}",
        )
    return shown
