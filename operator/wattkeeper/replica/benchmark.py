"""Speed of the stepper: requests and tokens per second of processor time, with macro-steps and with single steps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from wattkeeper.replica import arrivals, saturation, stepper
from wattkeeper.replica.types import IntArray, ReplicaConfig, Requests


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One operating point; rates are per second of processor time."""

    load: float
    """Arrival rate over that of saturation."""
    requests_per_second: float
    """Macro-steps, queues and results included."""
    tokens_per_second: float
    """Answered tokens."""
    single_requests_per_second: float
    """The same run with every iteration stepped by itself."""
    steps_per_request: float
    preemptions: int

    @property
    def ratio(self) -> float:
        """How many times faster macro-steps are."""
        return self.requests_per_second / self.single_requests_per_second


def speeds(
    config: ReplicaConfig,
    *,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    loads: Sequence[float] = (0.1, 0.5, 0.9),
    repeats: int = 3,
    seed: int = 0,
) -> list[Speed]:
    """Simulate these requests at shares of the saturated rate; each figure is the best of `repeats` runs."""
    full = saturation.saturation(config, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    count = len(prompt_tokens)
    result = []
    for load in loads:
        requests = Requests(
            arrival_seconds=arrivals.poisson(rate=load * full.requests_per_second, count=count, seed=seed),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
        seconds = {}
        for macro_steps in (True, False):
            runs = []
            for _ in range(repeats):
                start = time.process_time()
                outcome = stepper.simulate(config, requests, macro_steps=macro_steps)
                runs.append(time.process_time() - start)
            seconds[macro_steps] = min(runs)
        result.append(
            Speed(
                load=load,
                requests_per_second=count / seconds[True],
                tokens_per_second=float(outcome.output_tokens[~outcome.refused].sum()) / seconds[True],
                single_requests_per_second=count / seconds[False],
                steps_per_request=outcome.activity.steps / count,
                preemptions=outcome.activity.preemptions,
            )
        )
    return result
