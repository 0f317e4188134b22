"""The whole factor system of energy in one list, also what no model uses, and why.

`factors.FACTORS` are learned, `factors.UNLEARNED_FACTORS` act through the physical estimate. Here are the rest: known
before acting but without a say in the watts, and known only after acting.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from wattkeeper.energy import factors
from wattkeeper.energy.factor_kinds import Dimension, FactorBefore, Origin, OutcomeFactor


@dataclass(frozen=True, kw_only=True)
class UnusedFactor(FactorBefore):
    """Known before acting, but no prediction of watts depends on it, and why."""

    reason: str


_KV, _SCHEDULING, _SYSTEM, _WORKLOAD = Dimension
_NOT_MEASURED = "no public data measures its effect on energy"

UNUSED: tuple[UnusedFactor, ...] = (
    UnusedFactor(name="block_size", dimension=_KV, unit="tokens", origin=Origin.SPEC, reason=_NOT_MEASURED),
    UnusedFactor(
        name="recent_preemptions", dimension=_KV, unit="1/s", origin=Origin.LIVE_METRIC,
        reason=f"{_NOT_MEASURED}; of the last window, it is known before acting",
    ),
    UnusedFactor(
        name="recent_kv_usage", dimension=_KV, unit="1", origin=Origin.LIVE_METRIC,
        reason="of the running setting; for a candidate `kv_fill` is predicted",
    ),
    UnusedFactor(name="policy", dimension=_SCHEDULING, unit="name", origin=Origin.SPEC, reason=_NOT_MEASURED),
    UnusedFactor(name="priority", dimension=_SCHEDULING, unit="1", origin=Origin.SPEC, reason=_NOT_MEASURED),
    UnusedFactor(
        name="pipeline_and_data_parallel", dimension=_SCHEDULING, unit="1", origin=Origin.SPEC,
        reason="the GPUs of a replica count (`gpus_per_replica`), not how the work is split over them",
    ),
    UnusedFactor(name="mig_slice", dimension=_SCHEDULING, unit="name", origin=Origin.SPEC, reason=_NOT_MEASURED),
    UnusedFactor(
        name="rate_volatility", dimension=_WORKLOAD, unit="1", origin=Origin.LIVE_METRIC,
        reason=f"{_NOT_MEASURED} in steady runs",
    ),
    UnusedFactor(
        name="length_spread", dimension=_WORKLOAD, unit="1", origin=Origin.LIVE_METRIC,
        reason="published runs have mean lengths only",
    ),
    UnusedFactor(
        name="complexity", dimension=_WORKLOAD, unit="name", origin=Origin.LIVE_METRIC,
        reason="no engine reports it before a request has run; the task of public runs is held out, not learned",
    ),
)  # fmt: skip

OUTCOMES: tuple[OutcomeFactor, ...] = (
    OutcomeFactor(
        name="gpu_utilisation", dimension=_SYSTEM, unit="1",
        description="share of time in which a kernel runs", instead="estimated_power_share",
    ),
    OutcomeFactor(
        name="gpu_temperature", dimension=_SYSTEM, unit="degC",
        description="of the card under the load", instead="gpu_power_limit and power_cap",
    ),
    OutcomeFactor(
        name="realised_clock", dimension=_SYSTEM, unit="Hz",
        description="SM clock that the card held", instead="clock_ratio and power_cap",
    ),
    OutcomeFactor(
        name="realised_batch", dimension=_SCHEDULING, unit="sequences",
        description="sequences that ran together", instead="batch, which is predicted",
    ),
    OutcomeFactor(
        name="measured_inter_token_seconds", dimension=_SCHEDULING, unit="s",
        description="time between two tokens", instead="step_seconds",
    ),
    OutcomeFactor(
        name="measured_tokens_per_second", dimension=_WORKLOAD, unit="1/s",
        description="output tokens of a replica", instead="requests_per_second and output_tokens",
    ),
    OutcomeFactor(
        name="preemptions", dimension=_KV, unit="1/s",
        description="sequences put back after a change", instead="kv_fill",
    ),
    OutcomeFactor(
        name="realised_hit_ratio", dimension=_KV, unit="1",
        description="prompt tokens found in the cache after a change", instead="prefix_hit_ratio of the last window",
    ),
)  # fmt: skip


def markdown() -> Iterator[str]:
    """The schema as lines of a page: a table per dimension."""
    yield "| dimension | factor | unit | source | known before acting | how it acts |"
    yield "|---|---|---|---|---|---|"
    for dimension in Dimension:
        for learned in factors.FACTORS:
            if learned.dimension is dimension:
                yield _row(learned, f"learned: {learned.description}")
        for physical in factors.UNLEARNED_FACTORS:
            if physical.dimension is dimension:
                yield _row(physical, f"physical estimate alone: {physical.reason}")
        for unused in UNUSED:
            if unused.dimension is dimension:
                yield _row(unused, f"none: {unused.reason}")
        for after in OUTCOMES:
            if after.dimension is dimension:
                text = f"never a feature: {after.description}; instead {after.instead}"
                yield f"| {dimension.value} | `{after.name}` | {after.unit} | live metric | **no** | {text} |"


def _row(factor: FactorBefore, text: str) -> str:
    return f"| {factor.dimension.value} | `{factor.name}` | {factor.unit} | {factor.origin.value} | yes | {text} |"
