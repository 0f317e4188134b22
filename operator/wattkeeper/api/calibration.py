"""What measured watts taught of the energy model, as status keeps it."""

from pydantic import Field

from wattkeeper.api.base import ApiModel


class LearntReading(ApiModel):
    """What was measured around one batch."""

    batch: float = Field(gt=0, description="Sequences that decode together while a replica is busy.")
    error_log: float = Field(description="Natural logarithm of measured over predicted power, before calibration.")
    weight: float = Field(ge=0, le=64, description="How many readings stand behind it, bounded and ageing.")
    time: str = Field(default="", max_length=40, description="When it was last measured (RFC 3339).")


class FullPowerStatus(ApiModel):
    """What was read while no power limit held the watts; limits are planned with it.

    Numbers have no bounds: one that makes no sense is left out with a line in the log, and nothing else is lost.
    """

    watts_factor: float = Field(
        description="How many times the estimated watts above the floor a limit is planned with; 1: the estimate."
    )
    time: str = Field(default="", max_length=40, description="When it was last read (RFC 3339).")
    estimate: str = Field(
        default="", max_length=16, description="Hash of the estimate that it multiplies; of use to no other."
    )


class CalibrationStatus(ApiModel):
    """Readings of one deployment; of use to the energy model that they were taken with."""

    energy_model: str = Field(default="", max_length=64, description="Version of the energy model.")
    model: str = Field(default="", max_length=253, description="Model; empty: that of the object it stands in.")
    accelerator: str = Field(
        default="", max_length=128, description="Accelerator; empty: that of the object it stands in."
    )
    gpus_per_replica: int | None = Field(
        default=None, description="GPUs of one replica; left out: as the object it stands in."
    )
    kv_cache_dtype: str = Field(default="auto", max_length=32, description="Type of the KV cache of the engines.")
    readings: list[LearntReading] = Field(
        default_factory=list, max_length=16, description="One per half doubling of the batch."
    )
    full_power: FullPowerStatus | None = Field(
        default=None, description="What was read while no power limit held the watts."
    )
