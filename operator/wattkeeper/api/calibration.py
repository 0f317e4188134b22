"""What measured watts taught of the energy model, as status keeps it."""

from pydantic import Field

from wattkeeper.api.base import ApiModel


class LearntReading(ApiModel):
    """What was measured around one batch."""

    batch: float = Field(gt=0, description="Sequences that decode together while a replica is busy.")
    error_log: float = Field(description="Natural logarithm of measured over predicted power, before calibration.")
    weight: float = Field(ge=0, le=64, description="How many readings stand behind it, bounded and ageing.")
    time: str = Field(default="", max_length=40, description="When it was last measured (RFC 3339).")


class CalibrationStatus(ApiModel):
    """Readings of one deployment; of use to the energy model that they were taken with."""

    energy_model: str = Field(default="", max_length=64, description="Version of the energy model.")
    kv_cache_dtype: str = Field(default="auto", max_length=32, description="Type of the KV cache of the engines.")
    readings: list[LearntReading] = Field(
        default_factory=list, max_length=16, description="One per half doubling of the batch."
    )
