"""InferenceService: a fleet of vLLM replicas, its latency objective, and what the operator may move.

The short name is `wis` because KServe owns the bare kind; write `inferenceservices.wattkeeper.io` in scripts.
"""

import enum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from wattkeeper.api.base import ApiModel
from wattkeeper.api.quantities import (
    CLOCK_PATTERN,
    DURATION_PATTERN,
    POWER_PATTERN,
    Bytes,
    Clock,
    Duration,
    Power,
)
from wattkeeper.api.service_status import InferenceServiceStatus

_Name = Annotated[str, Field(min_length=1, max_length=253)]


def _rules(*rules: tuple[str, str]) -> dict[str, Any]:
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]}


class Mode(enum.StrEnum):
    """How far the operator goes."""

    OBSERVE = "Observe"
    RECOMMEND = "Recommend"
    ENFORCE = "Enforce"


class ControlMode(enum.StrEnum):
    """Who writes the replica count."""

    DIRECT = "Direct"
    EXTERNAL = "External"


class MetricsSourceKind(enum.StrEnum):
    """Where the series of a service come from."""

    PROMETHEUS = "Prometheus"
    SCRAPE = "Scrape"


class TargetKind(enum.StrEnum):
    """Workload kinds that can be adopted."""

    DEPLOYMENT = "Deployment"
    STATEFUL_SET = "StatefulSet"


class TargetRef(ApiModel):
    """The workload that runs vLLM."""

    api_version: str = Field(default="apps/v1", description="API version of the workload.", pattern=r"^apps/v1$")
    kind: TargetKind = Field(default=TargetKind.DEPLOYMENT, description="Deployment or StatefulSet.")
    name: _Name = Field(description="Name of the workload, in the namespace of this object.")
    container: str | None = Field(
        default=None,
        max_length=63,
        description="Container that runs vLLM; needed only where the pod has several and none is recognised.",
    )


class Accelerator(ApiModel):
    """What one replica runs on; both parts are read from the node and the pod where they are left out."""

    type: str | None = Field(
        default=None,
        max_length=128,
        description="Name in the catalogue, such as nvidia-h100-sxm; left out: read from the node's GPU label.",
    )
    per_replica: int | None = Field(
        default=None, ge=1, le=64, description="GPUs per replica; left out: the container's GPU limit."
    )


class LatencyGoal(ApiModel):
    """A latency that a percentile of the requests must meet."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (
                f"!self.target.matches(r'{DURATION_PATTERN}') || duration(self.target) > duration('0s')",
                "target must be above 0",
            )
        )
    )

    percentile: float = Field(default=95, ge=50, le=99.9, description="Percentile of requests, 50 to 99.9.")
    target: Duration = Field(description="Latency that this percentile must not exceed, for example 500ms.")


class SloSpec(ApiModel):
    """Latency objective; at least one of ttft and tpot."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (
                "has(self.ttft) || has(self.tpot)",
                "an SLO needs ttft, tpot or both: without one nothing protects latency",
            )
        )
    )

    ttft: LatencyGoal | None = Field(default=None, description="Time to first token.")
    tpot: LatencyGoal | None = Field(default=None, description="Time per output token after the first.")
    min_attainment: float = Field(
        default=0.99, ge=0.5, le=1.0, description="Share of requests that must meet every target."
    )


class ReplicasSpec(ApiModel):
    """Bounds of the replica count."""

    model_config = ConfigDict(
        json_schema_extra=_rules(("self.min <= self.max", "levers.replicas: min must not exceed max"))
    )

    min: int = Field(default=1, ge=1, le=10000, description="Fewest replicas, also when idle.")
    max: int = Field(ge=1, le=10000, description="Most replicas.")
    control: ControlMode = Field(
        default=ControlMode.DIRECT,
        description="Direct: the operator scales. External: it publishes the number; KEDA or an HPA acts on it.",
    )


def _watts_rule(rule: str, message: str) -> tuple[str, str]:
    """A rule over min and max in whole watts; a wrong form is said by the field itself, not here."""
    guard = " || ".join(f"!self.{name}.matches(r'{POWER_PATTERN}')" for name in ("min", "max"))
    number = rule.replace("min", "int(self.min.replace('W', ''))").replace("max", "int(self.max.replace('W', ''))")
    return f"{guard} || {number}", message


class PowerCapSpec(ApiModel):
    """Range of GPU power limits."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            _watts_rule("min <= max", "levers.powerCap: min must not exceed max"),
            _watts_rule("min >= 50", "levers.powerCap: min is below 50W, which no data-centre GPU accepts"),
            _watts_rule("max <= 1500", "levers.powerCap: max is above 1500W per GPU"),
        )
    )

    min: Power = Field(description="Lowest limit per GPU, for example 350W.")
    max: Power = Field(description="Highest limit per GPU, for example 700W.")
    step: Power = Field(default=25.0, description="Step between limits.")


class ClockLockSpec(ApiModel):
    """Range of locked SM clocks."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (
                f"!self.min.matches(r'{CLOCK_PATTERN}') || !self.max.matches(r'{CLOCK_PATTERN}') || "
                "int(self.min.replace('MHz', '')) <= int(self.max.replace('MHz', ''))",
                "levers.clockLock: min must not exceed max",
            )
        )
    )

    min: Clock = Field(description="Lowest SM clock, for example 900MHz.")
    max: Clock = Field(description="Highest SM clock, for example 1980MHz.")
    step: Clock = Field(default=105.0, description="Step between clocks.")


class EngineSpec(ApiModel):
    """Values that vLLM arguments may take. An argument that is not listed is left as it is."""

    model_config = ConfigDict(
        json_schema_extra=_rules(
            (
                "!has(self.maxNumBatchedTokens) || !has(self.maxNumSeqs) || size(self.maxNumSeqs) == 0 || "
                "self.maxNumBatchedTokens.all(tokens, self.maxNumSeqs.exists(seqs, tokens >= seqs))",
                "levers.engine: vLLM does not start where maxNumBatchedTokens is below maxNumSeqs, "
                "so every token budget needs a maxNumSeqs that it can hold",
            )
        )
    )

    max_num_batched_tokens: list[Annotated[int, Field(ge=1, le=1048576)]] = Field(
        default_factory=list, max_length=16, description="Token budgets of one engine step (--max-num-batched-tokens)."
    )
    max_num_seqs: list[Annotated[int, Field(ge=1, le=65536)]] = Field(
        default_factory=list, max_length=16, description="Limits of concurrent sequences (--max-num-seqs)."
    )
    kv_cache_memory: list[Bytes] = Field(
        default_factory=list, max_length=16, description="KV cache sizes per GPU (--kv-cache-memory-bytes)."
    )
    gpu_memory_utilization: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=list, max_length=16, description="Shares of GPU memory (--gpu-memory-utilization)."
    )
    kv_cache_dtype: list[Annotated[str, Field(max_length=32)]] = Field(
        default_factory=list,
        max_length=8,
        description="KV cache types (--kv-cache-dtype). Other than auto may cost accuracy: check first.",
    )


class RolloutSpec(ApiModel):
    """When engine arguments may change, since each change restarts every replica."""

    min_interval: Duration = Field(default=1800.0, description="Least time between two changes of arguments.")


class LeversSpec(ApiModel):
    """What the operator may move. A lever that is left out is never touched."""

    replicas: ReplicasSpec | None = Field(default=None, description="Replica count.")
    power_cap: PowerCapSpec | None = Field(default=None, description="GPU power limit, per GPU.")
    clock_lock: ClockLockSpec | None = Field(default=None, description="Locked SM clock; a finer lever than the cap.")
    engine: EngineSpec = Field(default_factory=EngineSpec, description="vLLM arguments; a change is a roll-out.")
    rollout: RolloutSpec = Field(default_factory=RolloutSpec, description="Pace of changes of arguments.")


class MetricsSpec(ApiModel):
    """Where measurements come from and how old they may be."""

    source: MetricsSourceKind | None = Field(
        default=None, description="Prometheus or Scrape; left out: what the operator was started with."
    )
    max_age: Duration = Field(default=60.0, description="Older measurements count as missing.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port of vLLM's /metrics, for source Scrape.")
    path: str = Field(default="/metrics", max_length=253, description="Path of vLLM's metrics, for source Scrape.")


class InferenceServiceSpec(ApiModel):
    """What a user wants of a service."""

    model: str = Field(
        min_length=1, max_length=253, description="Model served, as on the hub: meta-llama/Llama-3.1-8B-Instruct."
    )
    target_ref: TargetRef = Field(description="The workload to adopt.")
    accelerator: Accelerator = Field(default_factory=Accelerator, description="GPU type and count of one replica.")
    slo: SloSpec = Field(description="Latency objective.")
    mode: Mode = Field(
        default=Mode.RECOMMEND,
        description="Observe: measure only. Recommend: also plan, patch nothing. Enforce: act on the plan.",
    )
    levers: LeversSpec = Field(default_factory=LeversSpec, description="What may be moved, and how far.")
    metrics: MetricsSpec = Field(default_factory=MetricsSpec, description="Source and age of measurements.")
    paused: bool = Field(
        default=False, description="True: nothing new is decided or patched; caps already set stay and are renewed."
    )
    replicas: int | None = Field(
        default=None,
        ge=1,
        le=10000,
        description="Pins the replica count (what kubectl scale writes); left out: the plan decides.",
    )


class InferenceService(ApiModel):
    """A vLLM fleet that is kept at the lowest energy that still meets its latency SLO."""

    spec: InferenceServiceSpec = Field(description="What is wanted.")
    status: InferenceServiceStatus = Field(default_factory=InferenceServiceStatus, description="What is.")
