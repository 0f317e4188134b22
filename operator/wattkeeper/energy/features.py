"""Facts of an operating point that the learned part sees: all known before acting, none measured while it runs.

The factors of `energy.factors` that do not rest on a physical estimate, further facts of the architecture, and how the
fitted prior divides a step: shares, so that a model that is bound by the same thing is near.
"""

import numpy as np

from wattkeeper.domain.workload import FloatArray
from wattkeeper.energy import terms
from wattkeeper.energy.prior import Prior
from wattkeeper.energy.terms import Deployment, Steps
from wattkeeper.physics import kv
from wattkeeper.physics.architecture import Precision

_READS = ("dense_read", "expert_read", "four_bit_read")
_COMPUTE = (
    "decode_compute", "prefill_compute", "eight_bit_compute", "eight_bit_dense", "four_bit_compute", "small_tiles",
    "data_parallel",
)  # fmt: skip
_SHARES = {
    "weight_read_share": _READS,
    "kv_read_share": ("kv_read",),
    "compute_share": _COMPUTE,
    "media_share": ("media", "media_host", "requests"),
}
FACTS: tuple[str, ...] = (
    "log2_batch",
    "log2_gpus",
    "log2_gpu_watts",
    "log2_parameters",
    "log2_activated",
    "weight_bytes_per_parameter",
    "log2_kv_bytes",
    "layers",
    "log2_hidden",
    "log2_experts",
    "eight_bit_experts",
    "state_share",
    "log2_prompt",
    "log2_output",
    "multimodal",
)
"""Columns of `facts`."""
COLUMNS: tuple[str, ...] = (*FACTS, *_SHARES, "prior_log_power")
"""Columns of `table`."""


def facts(deployment: Deployment, steps: Steps) -> FloatArray:
    """Facts of N steps of one deployment, (N, len(FACTS)); rounded, so that a last bit moves no tree's split."""
    model, gpu = deployment.model, deployment.gpu
    nominal = deployment.kv_bytes_ratio * kv.demand(model, tensor_parallel=1).bytes_per_token()
    one = np.ones(len(steps))
    columns = {
        "log2_batch": np.log2(np.maximum(steps.batch, 2.0**-10)),
        "log2_gpus": np.log2(deployment.gpus) * one,
        "log2_gpu_watts": np.log2(gpu.tdp_watts) * one,
        "log2_parameters": np.log2(model.parameters) * one,
        "log2_activated": np.log2(model.activated_parameters) * one,
        "weight_bytes_per_parameter": model.weight_bytes / model.parameters * one,
        "log2_kv_bytes": np.log2(max(nominal, 1.0)) * one,
        "layers": float(model.layers) * one,
        "log2_hidden": np.log2(model.hidden) * one,
        "log2_experts": np.log2(1.0 + model.experts) * one,
        "eight_bit_experts": float(model.experts > 0 and model.precision is Precision.FP8) * one,
        "state_share": model.state_layers / model.layers * one,
        "log2_prompt": np.log2(np.maximum(steps.prompt_tokens, 1.0)),
        "log2_output": np.log2(np.maximum(steps.output_tokens, 1.0)),
        "multimodal": steps.multimodal,
    }
    return np.asarray(np.round(np.stack([columns[name] for name in FACTS], axis=1), 6))


def table(known: FloatArray, term_seconds: FloatArray, gpu: list[str], joules: Prior, seconds: Prior) -> FloatArray:
    """All columns for the learned part: facts (N, F), shares of the prior's step, and its power, (N, len(COLUMNS))."""
    parts = joules.parts(term_seconds, gpu)
    names = [terms.NAMES[index] for index in joules.used]
    total = parts.sum(axis=1)
    shares = [
        parts[:, [index for index, name in enumerate(names) if name in group]].sum(axis=1) / total
        for group in _SHARES.values()
    ]
    power = np.log(total) - seconds.log_value(term_seconds, gpu)
    return np.column_stack([known, np.round(np.stack([*shares, power], axis=1), 6)])
