"""What the operator says of an InferenceService: its status."""

from pydantic import Field

from wattkeeper.api.base import ApiModel
from wattkeeper.api.calibration import CalibrationStatus
from wattkeeper.api.conditions import Condition
from wattkeeper.api.factors import FactorsStatus


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
