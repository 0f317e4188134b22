"""One finite benchmark run (N requests sent at a rate to one vLLM engine) on the exact replica stepper.

The stepper's iteration time is linear in the batch. A measured one is not: up to some batch a step waits for weights,
beyond it for arithmetic, and a step that holds any prompt leaves the full CUDA graph. The stepper is therefore advanced
in slices that hold one kind of iteration only, each with the linear form of its kind:

    t = d0 + dN n + dK max(0, n - knee) + dKV kv + dT prompt tokens + (mixed, where the step computes any prompt)

Around the engine, clients see three more delays: a fixed one, the front end's own queue of one server (tokeniser and
HTTP; it limits how fast requests reach the engine), and the delivery of a step's tokens, one running sequence after the
other, of which a new one is the last.
"""

import math
from dataclasses import dataclass, fields

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.profile import IterationCoefficients
from wattkeeper.replica.stepper import Replica
from wattkeeper.replica.types import IntArray, ReplicaConfig, Requests

_SLICE_SECONDS = 0.25
"""Beyond the knee a slice is no longer, so that the slope changes soon after the batch falls below it."""
_ONE_STEP = 1e-9
_PROMPT_SPREAD = 0.5
"""Of ln(prompt tokens), assumed: with cached prompts it only moves KV memory a little."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a calibration finds, in seconds."""

    fixed_seconds: float
    per_decode_seconds: float
    per_kv_token_seconds: float
    per_prompt_token_seconds: float
    client_seconds: float
    """Fixed part that a client sees on top of the engine's time to first token."""
    front_end_seconds: float
    """Per request, in the front end's queue."""
    knee_sequences: float
    beyond_knee_seconds: float
    """More per decoding sequence above the knee."""
    mixed_seconds: float
    """More where the step computes any prompt."""
    delivery_seconds: float
    """Per sequence that runs when a token is delivered."""

    def array(self) -> FloatArray:
        """In the order of the fields."""
        return np.array([getattr(self, field.name) for field in fields(self)])

    @staticmethod
    def of(values: FloatArray) -> "Costs":
        """From an array in the order of the fields."""
        return Costs(**{field.name: float(value) for field, value in zip(fields(Costs), values, strict=True)})


@dataclass(frozen=True, kw_only=True)
class Run:
    """One benchmark run."""

    requests_per_second: float
    prompt_tokens: float
    """Mean."""
    output_tokens: IntArray
    """Of each request, in no particular order."""
    cached: bool
    """Prompts are in the prefix cache from runs before: of each only the last block is computed."""
    kv_blocks: int
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """What clients saw, one entry per request."""

    ttft_seconds: FloatArray
    tpot_seconds: FloatArray
    """NaN for answers of one token."""
    finish_seconds: FloatArray


class _SlicedReplica(Replica):
    """The stepper with another linear form in each slice; `activity` beyond counts is not meaningful."""

    def serve(self, costs: Costs) -> None:
        """Run to the end."""
        low = (costs.fixed_seconds, costs.per_decode_seconds)
        high = (
            costs.fixed_seconds - costs.beyond_knee_seconds * costs.knee_sequences,
            costs.per_decode_seconds + costs.beyond_knee_seconds,
        )
        while True:
            following = self._arrival[self._head]
            prompts = following <= self.now or bool(self._partials) or bool(self._front)
            if not prompts and not self._decodes:
                if following == math.inf:
                    return
                self.advance(following)
                continue
            beyond = self._decodes > costs.knee_sequences
            fixed, per_decode = high if beyond else low
            self._coefficients = (
                fixed + costs.mixed_seconds * prompts,
                costs.per_prompt_token_seconds,
                per_decode,
                costs.per_kv_token_seconds,
                0.0,
            )
            if prompts:
                self.advance(self.now + _ONE_STEP)
            else:
                self.advance(min(following, self.now + _SLICE_SECONDS) if beyond else following)


def serve(run: Run, costs: Costs, *, seed: int) -> Latencies:
    """Send the run's requests at even distances and serve them all; `seed` shuffles the answers and draws prompts."""
    rng = np.random.default_rng(seed)
    outputs = rng.permutation(run.output_tokens)
    count = len(outputs)
    order = np.arange(count)
    sent = order / run.requests_per_second
    drawn = run.prompt_tokens * rng.lognormal(-(_PROMPT_SPREAD**2) / 2.0, _PROMPT_SPREAD, count)
    prompts = np.maximum(1, np.rint(drawn)).astype(np.int64)
    requests = Requests(
        arrival_seconds=np.maximum.accumulate(sent - order * costs.front_end_seconds)
        + (order + 1) * costs.front_end_seconds,
        prompt_tokens=prompts,
        output_tokens=outputs,
        hit_tokens=prompts if run.cached else None,
    )
    replica = _SlicedReplica(
        ReplicaConfig(
            iteration=IterationCoefficients(
                d0_seconds=costs.fixed_seconds,
                dt_seconds_per_token=costs.per_prompt_token_seconds,
                dkv_seconds_per_kv_token=costs.per_kv_token_seconds,
                da_seconds_per_token_squared=0.0,
                dn_seconds_per_decode=costs.per_decode_seconds,
            ),
            max_num_seqs=run.max_num_seqs,
            max_num_batched_tokens=run.max_num_batched_tokens,
            kv_blocks=run.kv_blocks,
        )
    )
    answered, accepted = replica.load(requests)
    replica.serve(costs)
    outcome = replica.outcome(requests.arrival_seconds, answered, accepted)
    first, last = outcome.first_token_seconds, outcome.finish_seconds
    started, ended = np.sort(first), np.sort(last)
    with_first = np.searchsorted(started, first, side="right") - np.searchsorted(ended, first, side="right")
    with_last = np.searchsorted(started, last, side="right") - np.searchsorted(ended, last, side="left")
    seen_first = first + costs.client_seconds + costs.delivery_seconds * with_first
    seen_last = last + costs.client_seconds + costs.delivery_seconds * with_last
    gaps = np.where(outputs > 1, outputs - 1.0, np.nan)
    return Latencies(
        ttft_seconds=seen_first - sent, tpot_seconds=(seen_last - seen_first) / gaps, finish_seconds=seen_last
    )
