"""The whole factor system of energy in one list, also what no model uses, and why.

`factors.FACTORS` are learned, `factors.UNLEARNED_FACTORS` act through the physical estimate. Here are the rest: known
before acting and acting through one of those, known before acting but without a say in the watts, and known only after
acting.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from wattkeeper.energy import factors
from wattkeeper.energy.factor_kinds import Dimension, FactorBefore, Origin, OutcomeFactor
from wattkeeper.energy.factors import UnlearnedFactor


@dataclass(frozen=True, kw_only=True)
class UnusedFactor(FactorBefore):
    """Known before acting, but no prediction of watts depends on it, and why."""

    reason: str


_KV, _SCHEDULING, _SYSTEM, _WORKLOAD = Dimension
_NOT_MEASURED = "no public data measures its effect on energy"

THROUGH_OTHERS: tuple[UnlearnedFactor, ...] = (
    UnlearnedFactor(
        name="kv_capacity_tokens", dimension=_KV, unit="tokens", origin=Origin.LIVE_METRIC,
        reason="acts on `kv_fill` and on how many sequences fit",
    ),
    UnlearnedFactor(
        name="kv_cache_dtype", dimension=_KV, unit="name", origin=Origin.SPEC, reason="acts on `kv_bytes_per_token`"
    ),
    UnlearnedFactor(
        name="tensor_parallel", dimension=_SCHEDULING, unit="1", origin=Origin.SPEC,
        reason="acts on `step_seconds` and, with the other two kinds of parallelism, on `gpus_per_replica`",
    ),
    UnlearnedFactor(
        name="gpu", dimension=_SYSTEM, unit="name", origin=Origin.CATALOGUE,
        reason="acts on its rated power, memory bandwidth and step time",
    ),
    UnlearnedFactor(
        name="host_seconds_per_step", dimension=_SYSTEM, unit="s", origin=Origin.CATALOGUE,
        reason="part of `step_seconds` in which the GPU waits for the host; no clock shortens it",
    ),
)  # fmt: skip
"""They are causes of what is learned, so that a model need not see them again."""

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
        name="pipeline_parallel", dimension=_SCHEDULING, unit="1", origin=Origin.SPEC,
        reason="the GPUs of a replica count (`gpus_per_replica`), not how the work is split over them",
    ),
    UnusedFactor(
        name="data_parallel", dimension=_SCHEDULING, unit="1", origin=Origin.SPEC,
        reason="as `pipeline_parallel`",
    ),
    UnusedFactor(name="mig_slice", dimension=_SCHEDULING, unit="name", origin=Origin.SPEC, reason=_NOT_MEASURED),
    UnusedFactor(
        name="rate_volatility", dimension=_WORKLOAD, unit="1", origin=Origin.LIVE_METRIC,
        reason=f"{_NOT_MEASURED} in steady runs; variance over mean of the arrivals in a minute, 1 is Poisson",
    ),
    UnusedFactor(
        name="burstiness", dimension=_WORKLOAD, unit="1", origin=Origin.LIVE_METRIC,
        reason=f"{_NOT_MEASURED} in steady runs; as `rate_volatility`, of the arrivals in a second",
    ),
    UnusedFactor(
        name="prompt_spread", dimension=_WORKLOAD, unit="1", origin=Origin.LIVE_METRIC,
        reason="published runs have mean lengths only; standard deviation over mean",
    ),
    UnusedFactor(
        name="prompt_tokens_p95", dimension=_WORKLOAD, unit="tokens", origin=Origin.LIVE_METRIC,
        reason="published runs have mean lengths only",
    ),
    UnusedFactor(
        name="output_spread", dimension=_WORKLOAD, unit="1", origin=Origin.LIVE_METRIC,
        reason="published runs have mean lengths only; standard deviation over mean",
    ),
    UnusedFactor(
        name="output_tokens_p95", dimension=_WORKLOAD, unit="tokens", origin=Origin.LIVE_METRIC,
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
        name="realised_clock", dimension=_SYSTEM, unit="MHz",
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


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One factor of the whole system, of whatever kind."""

    name: str
    dimension: Dimension
    unit: str
    """`name` where the value is a word; 1 where it has no unit."""
    source: Origin
    before_acting: bool
    acts: str
    """How it enters a prediction, in words."""


def everything() -> Iterator[Listed]:
    """All factors, by dimension, those that act first."""
    for dimension in Dimension:
        for learned in factors.FACTORS:
            if learned.dimension is dimension:
                yield _listed(learned, f"learned: {learned.description}")
        for physical in (*factors.UNLEARNED_FACTORS, *THROUGH_OTHERS):
            if physical.dimension is dimension:
                yield _listed(physical, f"physical estimate alone: {physical.reason}")
        for unused in UNUSED:
            if unused.dimension is dimension:
                yield _listed(unused, f"none: {unused.reason}")
        for after in OUTCOMES:
            if after.dimension is dimension:
                yield Listed(
                    name=after.name,
                    dimension=dimension,
                    unit=after.unit,
                    source=Origin.LIVE_METRIC,
                    before_acting=False,
                    acts=f"never a feature: {after.description}; instead {after.instead}",
                )


def markdown() -> Iterator[str]:
    """The schema as lines of a page: a table per dimension."""
    yield "| dimension | factor | unit | source | known before acting | how it acts |"
    yield "|---|---|---|---|---|---|"
    for each in everything():
        known = "yes" if each.before_acting else "**no**"
        yield f"| {each.dimension.value} | `{each.name}` | {each.unit} | {each.source.value} | {known} | {each.acts} |"


def _listed(factor: FactorBefore, acts: str) -> Listed:
    return Listed(
        name=factor.name,
        dimension=factor.dimension,
        unit=factor.unit,
        source=factor.origin,
        before_acting=True,
        acts=acts,
    )
