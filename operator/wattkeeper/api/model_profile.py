"""ModelProfile: calibrated coefficients of one (model, accelerator, GPUs per replica)."""

import enum
from typing import Annotated

from pydantic import Field

from wattkeeper.api.base import ApiModel
from wattkeeper.api.calibration import CalibrationStatus

_NonNegative = Annotated[float, Field(ge=0)]


class ProfileProvenance(enum.StrEnum):
    """Where the numbers come from."""

    MEASURED = "Measured"
    FITTED = "Fitted"
    ESTIMATED = "Estimated"


class IterationProfile(ApiModel):
    """Time of one engine step at full clock: d0 + dT*tokens + dKV*kv + dA*sum(chunk*(history + chunk/2))."""

    d0_ms: _NonNegative = Field(description="Milliseconds of an empty step.")
    dt_ms_per_token: _NonNegative = Field(description="Milliseconds per token of the step.")
    dn_ms_per_decode: _NonNegative | None = Field(
        default=None, description="Milliseconds per decoding sequence; left out: as dtMsPerToken."
    )
    dkv_ms_per_kilo_token: _NonNegative = Field(description="Milliseconds per 1000 KV tokens read by decode.")
    da_ms_per_mega_token_squared: _NonNegative = Field(
        default=0.0, description="Milliseconds per million of chunk*(history + chunk/2)."
    )


class PowerProfile(ApiModel):
    """Power of one GPU at full clock."""

    static_watts: _NonNegative = Field(description="Drawn whenever a step runs, independent of the work.")
    idle_watts: _NonNegative = Field(description="Drawn with the model loaded and nothing to do.")
    step_joules: _NonNegative = Field(description="Joules of an empty step.")
    joules_per_prefill_token: _NonNegative = Field(description="Joules per prompt token computed.")
    joules_per_decode_step: _NonNegative = Field(description="Joules per decoding sequence and step.")
    joules_per_mega_kv_token: _NonNegative = Field(description="Joules per million KV tokens read by decode.")


class ModelProfileSpec(ApiModel):
    """Whom the profile speaks of, and its numbers. Parts left out are taken from the built-in catalogue."""

    model: str = Field(min_length=1, max_length=253, description="Model, as in InferenceService.spec.model.")
    accelerator: str = Field(min_length=1, max_length=128, description="Accelerator, as in the catalogue.")
    gpus_per_replica: int = Field(default=1, ge=1, le=64, description="GPUs of one replica.")
    iteration: IterationProfile | None = Field(default=None, description="Time of a step.")
    power: PowerProfile | None = Field(default=None, description="Power of a GPU.")
    kv_bytes_per_token: float | None = Field(default=None, gt=0, description="KV cache bytes per token and GPU.")
    provenance: ProfileProvenance = Field(
        default=ProfileProvenance.MEASURED, description="Where the numbers come from."
    )
    relative_error: float = Field(default=0.05, ge=0, le=2, description="One-sigma relative error of the step time.")


class ModelProfileStatus(ApiModel):
    """What the operator learnt of the pair. Delete it, and the operator learns afresh."""

    calibrations: list[CalibrationStatus] = Field(
        default_factory=list, max_length=8, description="What measured watts taught of the energy model."
    )


class ModelProfile(ApiModel):
    """Calibrated coefficients of a model on an accelerator."""

    spec: ModelProfileSpec = Field(description="Whom the profile speaks of, and its numbers.")
    status: ModelProfileStatus = Field(
        default_factory=ModelProfileStatus, description="What the operator learnt of the pair."
    )
