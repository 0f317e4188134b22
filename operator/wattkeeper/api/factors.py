"""Factors of energy in the status of a service: what the operator knew of each, and why not of others."""

from pydantic import Field

from wattkeeper.api.base import ApiModel


class FactorRemark(ApiModel):
    """Why factors have no value, or what their values rest on."""

    factors: list[str] = Field(max_length=64, description="Names of the factors.")
    text: str = Field(max_length=1024, description="The reason.")


class UntrainedFactor(ApiModel):
    """A factor outside what the energy model was trained on: its interval is wider for it."""

    name: str = Field(description="Of the factor.")
    unit: str = Field(description="Unit of the numbers; 1 where there is none.")
    value: float | None = Field(default=None, description="What it is here; absent: not known.")
    low: float = Field(description="Smallest value in training.")
    high: float = Field(description="Largest value in training.")


class FactorsStatus(ApiModel):
    """Factors of energy of what is in place; docs/factors.md says what each is."""

    time: str = Field(default="", description="When (RFC 3339).")
    values: dict[str, str] = Field(
        default_factory=dict, description="Value by name of the factor, in the factor's unit; absent: see remarks."
    )
    remarks: list[FactorRemark] = Field(
        default_factory=list, max_length=64, description="Why factors have no value, or what their values rest on."
    )
    untrained: list[UntrainedFactor] = Field(
        default_factory=list, max_length=64, description="Factors that widen the interval of predicted power."
    )
