"""The rate that a simulated replica serves when work never runs out: what closed forms of capacity are held against."""

from dataclasses import dataclass

import numpy as np

from wattkeeper.replica import stepper
from wattkeeper.replica.types import IntArray, ReplicaConfig, Requests

_WARM, _COOL = 0.2, 0.8


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """Throughput under an endless queue, and what it is lost to."""

    requests_per_second: float
    sequences: float
    """Decoding sequences, mean over time."""
    step_seconds: float
    """Mean iteration time."""
    preempted_per_request: float
    recomputed: float
    """Prefill tokens over those of a run without preemptions, less one."""
    refused: int


def saturation(
    config: ReplicaConfig, *, prompt_tokens: IntArray, output_tokens: IntArray, hit_tokens: IntArray | None = None
) -> Saturation:
    """Serve these requests, all there from the start; the rate is that of the middle 60 % of completions.

    A few thousand requests, and many times `max_num_seqs`, make a stable figure. Raises ValueError where fewer than ten
    of them can run at all.
    """
    requests = Requests(
        arrival_seconds=np.zeros(len(prompt_tokens)),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        hit_tokens=hit_tokens,
    )
    outcome = stepper.simulate(config, requests)
    finished = np.sort(outcome.finish_seconds[~outcome.refused])
    if len(finished) < 10:
        raise ValueError(f"{len(finished)} of {len(requests)} requests can run on this replica: too few for a rate")
    first, last = int(_WARM * len(finished)), int(_COOL * len(finished))
    activity = outcome.activity
    hits = 0 if hit_tokens is None else np.minimum(hit_tokens, prompt_tokens - 1) // config.block_size
    computed = prompt_tokens - hits * config.block_size
    return Saturation(
        requests_per_second=float((last - first) / (finished[last] - finished[first])),
        sequences=activity.sequence_seconds / activity.busy_seconds,
        step_seconds=activity.busy_seconds / activity.steps,
        preempted_per_request=activity.preemptions / len(finished),
        recomputed=activity.prefill_tokens / float(computed[~outcome.refused].sum()) - 1.0,
        refused=int(outcome.refused.sum()),
    )
