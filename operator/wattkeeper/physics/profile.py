"""What the models know of one replica: coefficients of a (model, accelerator, TP), with provenance.

Iteration time is the MIXED linear form (fitted to kernel tables; see the catalogue for the source of each number):

    t = d0 + dT * tokens + dKV * kv_decode + dA * sum(chunk * (history + chunk / 2))        [seconds]

with tokens = prefill chunk tokens + decoding sequences (dN in place of dT for the latter where fitted) and kv_decode =
resident KV tokens read by decode. Each term is split into a part that scales with 1/clock and a part that does not.
Power per GPU is a floor plus the dynamic energy of the same terms, limited by the card's power limit.
"""

import enum
from dataclasses import dataclass


class Provenance(enum.Enum):
    """Where a number comes from; ordered from the most to the least trustworthy."""

    MEASURED = "Measured"
    FITTED = "Fitted"
    ESTIMATED = "Estimated"
    """Roofline of the data sheet: marked so wherever it is shown."""


@dataclass(frozen=True, kw_only=True)
class IterationCoefficients:
    """Seconds per unit of the MIXED form at full clock, and the share of each term that scales with 1/clock."""

    d0_seconds: float
    dt_seconds_per_token: float
    dkv_seconds_per_kv_token: float
    da_seconds_per_token_squared: float
    d0_clock_share: float = 0.35
    dt_clock_share: float = 1.0
    dkv_clock_share: float = 0.25
    decode_clock_share: float = 0.6
    """Clock share of dT where the token is a decode step (mostly weight reads) instead of prefill."""
    dn_seconds_per_decode: float | None = None
    """Seconds per decoding sequence where it was fitted apart from prefill tokens; None: `dt_seconds_per_token`."""
    prefill_clock_ceiling: float = 1.0
    """Clock ratio that prefill reaches at the card's default power limit: a higher lock does not speed it up."""
    host_seconds: float = 0.0
    """Part of d0 that the host takes (scheduling, launches it does not hide): no GPU clock changes it."""
    host_seconds_per_sequence: float = 0.0
    """The same of dN."""
    exchange_seconds_per_token: float = 0.0
    """Part of dT and of dN that goes over the links between tensor parallel GPUs: no GPU clock changes it."""

    @property
    def decode_seconds_per_sequence(self) -> float:
        """Seconds that one more decoding sequence adds to a step, its KV reads apart."""
        return self.dt_seconds_per_token if self.dn_seconds_per_decode is None else self.dn_seconds_per_decode


@dataclass(frozen=True, kw_only=True)
class CoefficientSource:
    """Where one number of a profile comes from."""

    name: str
    """Field of `IterationCoefficients`, `EnergyCoefficients` or `ServingProfile`."""
    provenance: Provenance
    relative_error: float
    """One-sigma: of the coefficient where its fit gave a standard error, else of what it is used for (step time,
    watts, tokens)."""
    source: str


@dataclass(frozen=True, kw_only=True)
class EnergyCoefficients:
    """Joules per GPU of the same terms at full clock, above `static_watts`; and how they fall with the clock."""

    static_watts: float
    """Drawn by a GPU whenever an iteration runs, independent of the work."""
    idle_watts: float
    """Model loaded, nothing to do."""
    e0_joules: float
    et_joules_per_prefill_token: float
    en_joules_per_decode: float
    ekv_joules_per_kv_token: float


@dataclass(frozen=True, kw_only=True)
class GpuSpec:
    """One accelerator of the catalogue. Watts and MHz are per GPU."""

    name: str
    aliases: tuple[str, ...]
    memory_bytes: float
    bandwidth_bytes_per_second: float
    bf16_flops: float
    """Dense, as the other two."""
    tdp_watts: float
    min_cap_watts: float
    max_clock_mhz: float
    min_clock_mhz: float
    idle_watts: float
    source: str
    fp8_flops: float | None = None
    """None: no such units, eight-bit weights are computed in bf16."""
    fp4_flops: float | None = None
    link_bytes_per_second: float = 450e9
    """To the other GPUs of a tensor parallel group, one direction."""
    measured: tuple[str, ...] = ()
    """Names of catalogue figures that rest on measurements; all others are the data sheet's or `assumed`."""
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ServingProfile:
    """Everything the queueing, energy and planning rooms need of one replica (one tensor-parallel group)."""

    model: str
    gpu: GpuSpec
    gpus_per_replica: int
    iteration: IterationCoefficients
    energy: EnergyCoefficients
    kv_bytes_per_token: float
    """Per GPU."""
    kv_capacity_tokens: float
    """Per replica at default settings; the live `cache_config_info` wins over it."""
    max_model_len: int | None
    parameters: float
    activated_parameters: float
    provenance: Provenance
    relative_error: float
    """One-sigma relative error of step time, from the fit or assumed for an estimate."""
    notes: tuple[str, ...] = ()
    energy_provenance: Provenance = Provenance.ESTIMATED
    """Where the energy coefficients come from: a fit of step times alone leaves them estimated."""
    weight_bytes: float | None = None
    """Of all weights together; None: not known."""
    coefficients: tuple[CoefficientSource, ...] = ()
    """Provenance of each number."""
    data_parallel_size: int = 1
    """Groups of GPUs of a replica that attend to sequences of their own."""
    cap_caution: float = 1.0
    """The clock under a power limit is what is left when the card draws this many times the estimated dynamic watts, at
    most its rating: 1 where the estimate is believed, infinite where nothing but the rating is (`energy.caution`)."""

    def coefficient(self, name: str) -> CoefficientSource:
        """Provenance of the field `name`. Raises KeyError for a name that is no coefficient."""
        found = next((each for each in self.coefficients if each.name == name), None)
        if found is None:
            raise KeyError(name)
        return found
