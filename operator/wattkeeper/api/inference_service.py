"""InferenceService: a fleet of vLLM replicas, its latency objective, and what the operator may move.

The short name is `wis` because KServe owns the bare kind; write `inferenceservices.wattkeeper.io` in scripts.
"""

import enum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from wattkeeper.api.base import ApiModel
from wattkeeper.api.calibration import CalibrationStatus
from wattkeeper.api.conditions import Condition
from wattkeeper.api.factors import FactorsStatus
from wattkeeper.api.quantities import (
    CLOCK_PATTERN,
    DURATION_PATTERN,
    POWER_PATTERN,
    Bytes,
    Clock,
    Duration,
    Power,
)

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


class ObservedStatus(ApiModel):
    """What was measured last."""

    time: str = Field(default="", description="When (RFC 3339).")
    qps: float | None = Field(default=None, description="Requests per second arriving at the service.")
    prompt_tokens: float | None = Field(default=None, description="Mean prompt length in tokens.")
    output_tokens: float | None = Field(default=None, description="Mean answer length in tokens.")
    ttft: str | None = Field(default=None, description="Time to first token at the SLO's percentile.")
    tpot: str | None = Field(default=None, description="Time per output token at the SLO's percentile.")
    kv_usage: float | None = Field(default=None, description="Highest KV cache usage of a replica, 0 to 1.")
    prefix_hit_ratio: float | None = Field(default=None, description="Share of prompt tokens from the prefix cache.")
    preemptions_per_sec: float | None = Field(default=None, description="Preempted sequences per second.")
    waiting: float | None = Field(default=None, description="Requests waiting in all replicas.")
    power_watts: float | None = Field(default=None, description="Measured power of all GPUs of the service.")
    joules_per_token: str | None = Field(default=None, description="Measured energy per output token.")
    pods: str | None = Field(default=None, description="Pods with fresh metrics / pods ready.")


class EngineStatus(ApiModel):
    """vLLM arguments, as far as known."""

    max_num_batched_tokens: int | None = Field(default=None, description="Token budget of one step.")
    max_num_seqs: int | None = Field(default=None, description="Limit of concurrent sequences.")
    kv_cache_memory_bytes: int | None = Field(default=None, description="KV cache size per GPU.")
    gpu_memory_utilization: float | None = Field(default=None, description="Share of GPU memory.")
    kv_cache_dtype: str | None = Field(default=None, description="KV cache type.")


class PredictedStatus(ApiModel):
    """What the models expect of the plan."""

    power_watts: float | None = Field(default=None, description="Power of all GPUs.")
    power_low_watts: float | None = Field(default=None, description="Lower end of the interval.")
    power_high_watts: float | None = Field(default=None, description="Upper end of the interval.")
    ttft: str | None = Field(default=None, description="Time to first token at the SLO's percentile.")
    tpot: str | None = Field(default=None, description="Time per output token at the SLO's percentile.")
    utilisation: float | None = Field(default=None, description="Planned rate over stable capacity, 0 to 1.")


class LatencyCheckStatus(ApiModel):
    """One latency at the SLO's percentile: what was expected, what was replayed, and what it must not exceed."""

    percentile: float = Field(description="Percentile of requests.")
    target: str = Field(description="What it must not exceed.")
    predicted: str | None = Field(default=None, description="Analytic prediction; absent: without bound.")
    upper: str | None = Field(default=None, description="The prediction with its margin, which is held against target.")
    replayed: str | None = Field(default=None, description="In the replay.")
    replayed_upper: str | None = Field(default=None, description="The same with the replay's sampling error.")


class ReplayCheckStatus(ApiModel):
    """What replays through the exact simulator say of the plan."""

    standing: str = Field(description="Meets, Short (meets the target, not with margin), Misses, Awaited.")
    setting: str | None = Field(default=None, description="What was replayed; at most as much capacity as the plan's.")
    qps: float | None = Field(default=None, description="Rate of the replay.")
    requests: int | None = Field(default=None, description="Requests counted in it.")
    recorded: bool | None = Field(default=None, description="Whether recently recorded arrivals drove it.")
    attainment: float | None = Field(default=None, description="Share of requests within every target.")
    attainment_low: float | None = Field(default=None, description="Lower bound of it.")
    preemptions_per_request: float | None = Field(default=None, description="Preemptions over requests.")
    time: str | None = Field(default=None, description="Of the measurements that drove it (RFC 3339).")
    message: str | None = Field(default=None, max_length=1024, description="Why it proves nothing, where it does not.")


class WhatIfStatus(ApiModel):
    """What the analytic check says of a small change."""

    change: str = Field(description="The change.", max_length=64)
    ttft: str | None = Field(default=None, description="Time to first token then; absent: without bound.")
    tpot: str | None = Field(default=None, description="Time per output token then; absent: without bound.")
    utilisation: float | None = Field(default=None, description="Rate over stable capacity then.")
    violates: str | None = Field(default=None, description="The constraint that would not hold; absent: all hold.")


class CheckStatus(ApiModel):
    """The check that the plan passed: analytic prediction and replay, the worse of which decides."""

    margin: float | None = Field(default=None, description="Relative margin on both latencies.")
    utilisation: float | None = Field(default=None, description="Planned rate over stable capacity.")
    load_ceiling: float | None = Field(default=None, description="What utilisation may not exceed.")
    ttft: LatencyCheckStatus | None = Field(default=None, description="Time to first token.")
    tpot: LatencyCheckStatus | None = Field(default=None, description="Time per output token.")
    replay: ReplayCheckStatus | None = Field(default=None, description="Absent where the operator runs no replays.")
    what_if: list[WhatIfStatus] = Field(default_factory=list, max_length=8, description="What small changes would do.")


class PlanStatus(ApiModel):
    """The decision in force, and why."""

    replicas: int | None = Field(default=None, description="Replica count wanted.")
    power_cap_watts: float | None = Field(
        default=None, description="GPU power limit wanted; absent: the card's default."
    )
    clock_mhz: float | None = Field(default=None, alias="clockMHz", description="SM clock wanted; absent: not locked.")
    engine: EngineStatus = Field(default_factory=EngineStatus, description="Arguments wanted, where they change.")
    engine_diff: str | None = Field(default=None, max_length=16384, description="The change of arguments as a diff.")
    reason: str = Field(default="", description="Why, as a word.")
    message: str = Field(default="", max_length=4096, description="Why, as a sentence.")
    binding: str = Field(default="", description="The constraint that stops a cheaper plan.")
    runner_up: str | None = Field(default=None, max_length=4096, description="The best plan not chosen, and why not.")
    planned_qps: float | None = Field(default=None, description="Rate that the plan is made for.")
    decided_at: str = Field(default="", description="When this plan was first decided (RFC 3339).")
    predicted: PredictedStatus = Field(default_factory=PredictedStatus, description="What the models expect of it.")
    check: CheckStatus | None = Field(default=None, description="The check that it passed; absent where none was made.")


class PowerCapStatus(ApiModel):
    """Honest watts: what was asked, what the card allows, what is set, what is drawn. Per GPU, mean over GPUs."""

    requested: float | None = Field(default=None, description="Limit asked for.")
    clamped: float | None = Field(default=None, description="Limit after the card's own bounds.")
    enforced: float | None = Field(default=None, description="Limit read back from the card.")
    measured: float | None = Field(default=None, description="Power drawn.")


class AppliedStatus(ApiModel):
    """What is in place."""

    replicas: int | None = Field(default=None, description="Replicas of the target's spec.")
    ready_replicas: int | None = Field(default=None, description="Replicas that serve.")
    engine: EngineStatus = Field(default_factory=EngineStatus, description="Arguments in the target's pod template.")
    power_cap_watts: PowerCapStatus = Field(default_factory=PowerCapStatus, description="Power limits.")


class SavingsStatus(ApiModel):
    """Energy saved against a named counterfactual. An estimate: the counterfactual is predicted, not measured."""

    counterfactual: str = Field(default="", description="What the energy is compared with.")
    since: str = Field(default="", description="Start of the account (RFC 3339).")
    energy_kwh: float = Field(default=0.0, alias="energyKWh", description="Measured energy.")
    counterfactual_kwh: float = Field(
        default=0.0, alias="counterfactualKWh", description="Predicted energy without us."
    )
    percent: float | None = Field(default=None, description="Saved share in percent.")
    percent_low: float | None = Field(default=None, description="Lower end of its interval.")
    percent_high: float | None = Field(default=None, description="Upper end of its interval.")


class HistoryEntry(ApiModel):
    """One decision."""

    time: str = Field(description="When (RFC 3339).")
    reason: str = Field(description="Why, as a word.")
    change: str = Field(description="What changed, for example replicas 4 -> 3.", max_length=512)
    applied: bool = Field(default=False, description="True where it was acted on, False for a recommendation.")


class ProfileStatus(ApiModel):
    """What is planned with, and what the running engines taught of it. Kept across a restart."""

    accelerator: str = Field(default="", max_length=128, description="Accelerator, as the catalogue names it.")
    gpus_per_replica: int | None = Field(default=None, ge=1, description="GPUs of one replica.")
    model_profile: str | None = Field(
        default=None, max_length=253, description="Name of the ModelProfile of the pair, where there is one."
    )
    source: str = Field(default="", description="Measured, Fitted or Estimated: where the step time comes from.")
    refit: str = Field(
        default="",
        description="Identified; LoadTooSteady (the level is known, not its parts); PoorFit, TooFewWindows, NoSeries "
        "or NotStarted (the profile as it is).",
    )
    level: float = Field(default=1.0, gt=0, description="Measured over the profile's own step time.")
    confidence: float = Field(default=0.0, ge=0, le=1, description="0: only the profile speaks; 1: all terms measured.")
    relative_error: float | None = Field(
        default=None, ge=0, description="One-sigma relative error of the step time that is planned with."
    )
    windows: int = Field(default=0, ge=0, description="Windows between two scrapes that the refit rests on.")
    weak_terms: list[str] = Field(
        default_factory=list, max_length=3, description="Terms that the load does not tell apart: d0, dT, dKV."
    )
    d0_factor: float = Field(default=1.0, gt=0, description="On the profile's fixed time of a step.")
    dt_factor: float = Field(default=1.0, gt=0, description="On its time per token.")
    dkv_factor: float = Field(default=1.0, gt=0, description="On its time per KV token.")
    learned_of: str = Field(default="", max_length=16, description="Fingerprint of the profile the factors belong to.")


class CorrectionStatus(ApiModel):
    """How far measured watts are from the uncalibrated model. Logarithms of measured over predicted power."""

    samples: int = Field(default=0, ge=0, description="Measurements taken in.")
    bias_log: float = Field(default=0.0, description="Bias over minutes.")
    spread_log: float = Field(default=0.0, description="Mean distance to the bias.")
    trusted: bool = Field(default=True, description="False where the model does not describe this service.")


class MemoryStatus(ApiModel):
    """What the operator must remember across a restart."""

    last_scale_up: str | None = Field(default=None, description="Time of the last scale-up (RFC 3339).")
    last_scale_down: str | None = Field(default=None, description="Time of the last scale-down (RFC 3339).")
    last_rollout: str | None = Field(default=None, description="Time of the last change of arguments (RFC 3339).")
    rolled_back: str | None = Field(
        default=None, max_length=1024, description="Why the last roll-out of arguments was taken back."
    )
    bad_engines: list[EngineStatus] = Field(
        default_factory=list, max_length=16, description="Arguments whose roll-out failed: not tried again."
    )
    correction: CorrectionStatus | None = Field(
        default=None, description="How far measured watts are from the energy model."
    )
    calibration: CalibrationStatus | None = Field(
        default=None,
        description="What measured watts taught of the energy model, where no ModelProfile of the pair keeps it.",
    )


class InferenceServiceStatus(ApiModel):
    """What the operator says of a service."""

    observed_generation: int = Field(default=0, description="Generation of the spec that this status speaks of.")
    phase: str = Field(default="", description="One word for people: Ready, Degraded, Pending, Paused.")
    conditions: list[Condition] = Field(
        default_factory=list, max_length=16, description="What holds and what does not."
    )
    observed: ObservedStatus = Field(default_factory=ObservedStatus, description="What was measured last.")
    plan: PlanStatus = Field(default_factory=PlanStatus, description="The decision in force.")
    applied: AppliedStatus = Field(default_factory=AppliedStatus, description="What is in place.")
    profile: ProfileStatus = Field(default_factory=ProfileStatus, description="The profile that is planned with.")
    factors: FactorsStatus = Field(default_factory=FactorsStatus, description="Factors of energy, as last seen.")
    savings: SavingsStatus = Field(default_factory=SavingsStatus, description="Energy against the counterfactual.")
    history: list[HistoryEntry] = Field(default_factory=list, max_length=10, description="The last ten decisions.")
    memory: MemoryStatus = Field(default_factory=MemoryStatus, description="The operator's own notes.")
    selector: str | None = Field(default=None, description="Label selector of the target's pods, for the scale view.")


class InferenceService(ApiModel):
    """A vLLM fleet that is kept at the lowest energy that still meets its latency SLO."""

    spec: InferenceServiceSpec = Field(description="What is wanted.")
    status: InferenceServiceStatus = Field(default_factory=InferenceServiceStatus, description="What is.")
