"""What the columns of the learned part mean, and to which dimension of factors each belongs."""

from dataclasses import dataclass

from wattkeeper.energy import features
from wattkeeper.energy.factor_kinds import Dimension

_KV, _SCHEDULING, _SYSTEM, _WORKLOAD = Dimension


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of `features.table`."""

    name: str
    dimension: Dimension
    description: str


_MEANING: dict[str, tuple[Dimension, str]] = {
    "log2_batch": (_SCHEDULING, "sequences decoding together"),
    "log2_gpus": (_SYSTEM, "GPUs that one replica spans"),
    "log2_gpu_watts": (_SYSTEM, "rated power of one GPU"),
    "log2_parameters": (_SYSTEM, "parameters of the model"),
    "log2_activated": (_SYSTEM, "parameters used per token"),
    "weight_bytes_per_parameter": (_SYSTEM, "2 = bf16, 1 = fp8, about 0.6 = four bits with scales"),
    "log2_kv_bytes": (_KV, "KV-cache bytes of one token"),
    "layers": (_SYSTEM, "layers of the model"),
    "log2_hidden": (_SYSTEM, "width of the model"),
    "log2_experts": (_SYSTEM, "routed experts per layer"),
    "eight_bit_experts": (_SYSTEM, "1 where routed experts are in 8 bits"),
    "state_share": (_KV, "share of layers that keep a state instead of a KV cache"),
    "log2_prompt": (_WORKLOAD, "mean prompt tokens per request"),
    "log2_output": (_WORKLOAD, "mean output tokens per request"),
    "multimodal": (_WORKLOAD, "1 where requests carry images or video"),
    "weight_read_share": (_SYSTEM, "of a step's joules, by the fitted prior: reading weights"),
    "kv_read_share": (_KV, "of a step's joules, by the fitted prior: reading the KV cache"),
    "compute_share": (_SCHEDULING, "of a step's joules, by the fitted prior: computing"),
    "media_share": (_WORKLOAD, "of a step's joules, by the fitted prior: images, video and beginning requests"),
    "prior_log_power": (_SYSTEM, "watts of the fitted prior over a reference power"),
}
COLUMNS: tuple[Column, ...] = tuple(
    Column(name=name, dimension=_MEANING[name][0], description=_MEANING[name][1]) for name in features.COLUMNS
)
"""In the order of `features.COLUMNS`."""
