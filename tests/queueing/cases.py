"""Profiles, workloads and candidate builders shared by the tests of this room."""

import numpy as np

from wattkeeper.domain.arrivals import Dispersion
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.physics.profiles import serving_profile
from wattkeeper.queueing.types import Candidates

H100_8B = serving_profile(
    model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100", gpus_per_replica=1, engine=EngineSettings()
)
A100_7B = serving_profile(
    model="meta-llama/Llama-2-7b-chat-hf", accelerator="a100", gpus_per_replica=1, engine=EngineSettings()
)
H100_70B = serving_profile(
    model="meta-llama/Llama-3.1-70B-Instruct",
    accelerator="h100",
    gpus_per_replica=4,
    engine=EngineSettings(tensor_parallel_size=4),
)

_lognormal = LengthDistribution.lognormal
LENGTHS = {
    "conversation": (
        _lognormal(mean=1155, coefficient_of_variation=0.95),
        _lognormal(mean=211, coefficient_of_variation=0.77),
    ),
    "code": (_lognormal(mean=2048, coefficient_of_variation=0.9), _lognormal(mean=28, coefficient_of_variation=2.0)),
    "chat": (_lognormal(mean=246, coefficient_of_variation=1.9), _lognormal(mean=326, coefficient_of_variation=0.85)),
    "fixed": (LengthDistribution.fixed(512), LengthDistribution.fixed(20)),
}


def workload(kind, rate, *, dispersion=1.0, prefix_hit_ratio=0.0):
    prompt, output = LENGTHS[kind]
    return Workload(
        requests_per_second=rate,
        prompt=prompt,
        output=output,
        dispersion=Dispersion.flat(dispersion),
        prefix_hit_ratio=prefix_hit_ratio,
    )


def candidates(
    replicas=1, *, cap=float("nan"), clock_ratio=1.0, max_num_seqs=256, budget=2048, kv_capacity=420_000
) -> Candidates:
    """Candidates whose arguments broadcast to one shape."""
    arrays = np.broadcast_arrays(replicas, cap, clock_ratio, max_num_seqs, budget, kv_capacity)
    flat = [np.atleast_1d(np.asarray(array, dtype=np.float64)).copy() for array in arrays]
    return Candidates(
        replicas=flat[0],
        power_cap_watts=flat[1],
        clock_ratio=flat[2],
        max_num_seqs=flat[3],
        max_num_batched_tokens=flat[4],
        kv_capacity_tokens=flat[5],
    )
