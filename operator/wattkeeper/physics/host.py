"""The host's part of a step: what an engine's step takes beyond the kernels that the GPU runs.

Scheduling, sampling, input preparation and launches that do not hide behind kernels. The two constants are what
measured inter-token latencies exceed the composed kernels of the same steps by; `wattkeeper fit constants` fits them to
the dense bf16 models of ML.ENERGY v3 (vLLM 0.11.1, H100 and B200). They are a property of the engine and of its host,
not of the GPU; newer versions may take less.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from wattkeeper.domain.workload import FloatArray
from wattkeeper.physics.fitting import FitError

RELATIVE_ERROR = 0.13
"""One-sigma error of step time of kernels and host together, families left out of the fit of the host, see
docs/catalogue.md."""
_HUBER = 0.08
_ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class HostOverhead:
    """Seconds that a step takes beyond its kernels."""

    step_seconds: float
    sequence_seconds: float

    def seconds(self, sequences: FloatArray) -> FloatArray:
        """Of steps that decode so many sequences."""
        return self.step_seconds + self.sequence_seconds * sequences


OVERHEAD = HostOverhead(step_seconds=0.44e-3, sequence_seconds=49e-6)
NO_OVERHEAD = HostOverhead(step_seconds=0.0, sequence_seconds=0.0)


def fit_host(*, measured_seconds: FloatArray, kernel_seconds: FloatArray, sequences: FloatArray) -> HostOverhead:
    """The overhead with the least relative error of whole steps, rows far off counting less.

    Raises FitError: fewer than two runs.
    """
    if len(measured_seconds) < 2:
        raise FitError("the host's part of a step needs at least two runs whose kernels were measured")
    design = np.stack([np.ones_like(sequences), sequences], axis=1) / measured_seconds[:, None]
    wanted = 1.0 - kernel_seconds / measured_seconds
    weight, values = np.ones(len(wanted)), np.zeros(2)
    for _ in range(_ROUNDS):
        root = np.sqrt(weight)
        values = optimize.nnls(design * root[:, None], wanted * root)[0]
        weight = np.minimum(1.0, _HUBER / np.maximum(np.abs(wanted - design @ values), 1e-9))
    return HostOverhead(step_seconds=float(values[0]), sequence_seconds=float(values[1]))
