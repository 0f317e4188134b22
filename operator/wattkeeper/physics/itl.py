"""Iteration coefficients from inter-token latencies of closed-loop runs: one model on one accelerator, batch by batch.

A closed loop holds `batch` sequences. Each step then decodes all of them, reads their mean context (prompt and half
the answer) and, on average, takes in the prompts of the batch / answer length sequences that start anew. Batch and KV
tokens rise together within one workload, so dKV is drawn towards a prior, and dT and dA, which median latencies hardly
show, are held at it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.fitting import FitError, IterationFit, Pull, StepRows, fit
from wattkeeper.physics.profile import IterationCoefficients

KV_SPREAD = 0.3
"""One-sigma doubt about the prior's dKV."""
LEAST_RUNS = 4
LARGEST_BATCH = 512.0
"""Beyond it runs are bound by the KV cache and by the host more than by the step."""


@dataclass(frozen=True, kw_only=True)
class LatencyRuns:
    """Closed-loop runs, (N,) each."""

    batch: FloatArray
    prompt_tokens: FloatArray
    output_tokens: FloatArray
    inter_token_seconds: FloatArray
    """Median of the run."""

    def rows(self) -> StepRows:
        """The mean step of each run."""
        starts = self.batch / self.output_tokens
        return StepRows(
            prefill_tokens=starts * self.prompt_tokens,
            decode_sequences=self.batch,
            kv_tokens=self.batch * (self.prompt_tokens + self.output_tokens / 2.0),
            attention_products=starts * self.prompt_tokens**2 / 2.0,
            seconds=self.inter_token_seconds,
        )

    def where(self, chosen: npt.NDArray[np.bool_]) -> "LatencyRuns":
        """Only the runs for which `chosen` (N,) is true."""
        return LatencyRuns(**{name: value[chosen] for name, value in vars(self).items()})


def fit_latencies(runs: LatencyRuns, prior: IterationCoefficients) -> IterationFit:
    """d0, dN and dKV of the runs up to `LARGEST_BATCH`.

    Raises FitError: fewer than `LEAST_RUNS` of them, or all at one batch.
    """
    used = runs.where(runs.batch <= LARGEST_BATCH)
    if len(used.batch) < LEAST_RUNS or np.unique(np.round(used.batch)).size < LEAST_RUNS:
        raise FitError(
            f"{len(used.batch)} runs up to a batch of {LARGEST_BATCH:g} cannot tell the fixed part of a step from the "
            f"part per sequence: at least {LEAST_RUNS} different batches are needed"
        )
    return fit(
        used.rows(),
        held={"dt": prior.dt_seconds_per_token, "da": prior.da_seconds_per_token_squared},
        pulls={"dkv": Pull(value=prior.dkv_seconds_per_kv_token, spread=KV_SPREAD)},
        robust=True,
    )
