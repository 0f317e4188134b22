"""Results of one way to run the day, in a form that travels between processes and goes into the report."""

from dataclasses import dataclass

from wattkeeper.twin.ledger import Attainment, FloatArray, Ledger
from wattkeeper.twin.timeline import Point

BIN_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """A percentile over the day: mid time of each bin, TTFT and TPOT, each of shape (bins,), in seconds."""

    times_seconds: FloatArray
    ttft_seconds: FloatArray
    tpot_seconds: FloatArray


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Energy of the GPUs that pods held, how requests fared, and the course over the day."""

    energy_joules: float
    gpu_seconds: float
    attainment: Attainment
    lost_by_reason: dict[str, int]
    output_tokens: int
    points: tuple[Point, ...]
    latencies: Latencies
    percentile: float

    @property
    def kilowatt_hours(self) -> float:
        """Energy of the day."""
        return self.energy_joules / 3.6e6

    @property
    def joules_per_token(self) -> float | None:
        """Energy per output token of finished requests."""
        return self.energy_joules / self.output_tokens if self.output_tokens else None


def latencies(ledger: Ledger, *, percentile: float, origin_seconds: float = 0.0) -> Latencies:
    """The percentile of TTFT and TPOT per ten minutes of arrivals."""
    times, ttft, tpot = ledger.percentiles(
        bin_seconds=BIN_SECONDS, percentile=percentile, origin_seconds=origin_seconds
    )
    return Latencies(times_seconds=times, ttft_seconds=ttft, tpot_seconds=tpot)
