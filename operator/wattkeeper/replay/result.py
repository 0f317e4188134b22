"""What a replay found: one `Run` per policy, trace and seed, and the `ReplayReport` of all of them. JSON both ways.

Everything is measured in the simulated fleet itself, over all requests of the trace, not through the metrics that the
policies see. A request that was refused, lost or not finished at the end has missed its SLO.
"""

from dataclasses import dataclass, field

import pydantic

from wattkeeper.domain.errors import DataFileError

FORMAT = "wattkeeper-replay/1"
JOULES_PER_KWH = 3.6e6
QUANTILES: tuple[float, ...] = (*(step / 100 for step in range(100)), 0.995, 0.999, 1.0)
"""Shares of `Latency.grid`."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Of all GPUs of the fleet, from the beginning to the end of the trace; kWh."""

    busy_kwh: float
    """By engines while they compute."""
    idle_kwh: float
    """By engines without a request."""
    startup_kwh: float
    """By pods that start."""
    parked_kwh: float
    """By GPUs that no pod holds; 0 where they count as somebody else's (`ReplayReport.fleet.parked_counts`)."""

    @property
    def total_kwh(self) -> float:
        """The sum."""
        return self.busy_kwh + self.idle_kwh + self.startup_kwh + self.parked_kwh


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Of the requests that got their last token, in seconds; None where none did."""

    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None
    grid_seconds: tuple[float, ...]
    """The quantiles at `QUANTILES`: a CDF over the finished requests; empty where there are none."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Counts over all requests of the trace. `arrived` is the sum of `finished` and of what `lost` and `unfinished`."""

    arrived: int
    finished: int
    unfinished: int
    """Still waiting or running when the time for finishing after the end of the trace was over."""
    lost: dict[str, int]
    """By reason: no_ready_pod, too_long, grace_over, pod_ended."""
    met: int
    """Finished within the SLO's targets."""
    missed_ttft: int
    """Finished, first token too late (perhaps the others too)."""
    missed_tpot: int
    """Finished, first token in time, the others too slow."""
    prompt_tokens: int
    """Of finished requests."""
    output_tokens: int

    @property
    def attainment(self) -> float | None:
        """Share of all requests that met the SLO; None where none arrived."""
        return self.met / self.arrived if self.arrived else None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The run over time; every tuple has one entry per interval. None: nothing to measure in that interval."""

    interval_seconds: float
    time_seconds: tuple[float, ...]
    """End of each interval, since the trace began."""
    power_watts: tuple[float, ...]
    """Mean over the interval, all GPUs that are counted."""
    desired: tuple[int, ...]
    ready: tuple[int, ...]
    starting: tuple[int, ...]
    """Pending pods included."""
    draining: tuple[int, ...]
    cap_watts: tuple[float | None, ...]
    """Limit asked for per GPU of ready pods, the least strict; None: the card's default."""
    clock_limit_mhz: tuple[float | None, ...]
    """Lock asked for; None: free."""
    clock_mhz: tuple[float | None, ...]
    """Mean over the GPUs of ready pods."""
    requests_per_second: tuple[float, ...]
    """Arrivals."""
    met: tuple[int, ...]
    """Of the requests that arrived in the interval, those that met the SLO."""
    arrived: tuple[int, ...]
    ttft_p95_seconds: tuple[float | None, ...]
    """Of the finished requests that arrived in the interval."""
    tpot_p95_seconds: tuple[float | None, ...]
    running: tuple[int, ...]
    waiting: tuple[int, ...]
    kv_usage: tuple[float | None, ...]
    """Mean over ready pods, 0..1."""
    max_num_batched_tokens: tuple[int, ...]
    """Of the newest revision."""
    max_num_seqs: tuple[int, ...]

    @property
    def attainment(self) -> tuple[float | None, ...]:
        """Share of the requests of each interval that met the SLO; None where none arrived."""
        return tuple(met / arrived if arrived else None for met, arrived in zip(self.met, self.arrived, strict=True))


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Sums per hour of the trace (the last one may be shorter), for resampling."""

    energy_kwh: tuple[float, ...]
    arrived: tuple[int, ...]
    met: tuple[int, ...]
    output_tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something that was put right or refused in a run, with how often and when first; never silent."""

    text: str
    count: int
    first_seconds: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """One policy over one trace with one seed."""

    policy: str
    trace: str
    seed: int
    parameters: dict[str, float | int | str | bool | None]
    """Of the policy, tuned ones included."""
    energy: Energy
    requests: Requests
    ttft: Latency
    tpot: Latency
    windows_below_goal: float | None
    """Share of 10-minute windows with arrivals in which attainment was below the goal; None without arrivals."""
    replica_changes: int
    rollouts: int
    cap_changes: int
    """Of the power limit or of the clock lock."""
    replica_hours: float
    """From being scheduled to the end of draining, over all replicas."""
    columns: Columns
    hours: Hours
    repairs: tuple[Note, ...] = ()
    """Decisions that could not be carried out as they were and were clamped."""
    remarks: tuple[Note, ...] = ()
    """What the policy itself reports: such as refusals and rollbacks of the operator."""
    wall_seconds: float = 0.0
    """What the run took to compute."""
    decide_seconds: float = 0.0
    """Of these, in the policy."""
    decisions: int = 0


@dataclass(frozen=True, kw_only=True)
class TraceFacts:
    """What was played."""

    name: str
    requests: int
    span_seconds: float
    mean_requests_per_second: float
    peak_requests_per_second: float
    """Over a minute."""
    mean_prompt_tokens: float
    mean_output_tokens: float
    repairs: tuple[str, ...] = ()
    """What the loader had to put right."""


@dataclass(frozen=True, kw_only=True)
class FleetFacts:
    """What it was played on."""

    model: str
    accelerator: str
    gpus: int
    gpus_per_replica: int
    max_replicas: int
    startup_seconds: float
    router: str
    engine: dict[str, float | int | str | bool | None]
    """Arguments that were given; the others are vLLM's defaults."""
    parked_counts: bool
    """Whether GPUs that no pod holds are in the energy."""


@dataclass(frozen=True, kw_only=True)
class Goals:
    """The SLO that requests are judged by."""

    ttft_seconds: float | None
    tpot_seconds: float | None
    percentile: float
    """The percentile (0..100) that policies are told to keep at those targets."""
    min_attainment: float
    """Share of requests that must meet both targets."""


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """All runs of one replay."""

    traces: tuple[TraceFacts, ...]
    fleet: FleetFacts
    goals: Goals
    runs: tuple[Run, ...]
    baseline: str
    """Name of the policy that savings are given against."""
    settings: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    """How it was played: scrape interval, delay, gaps, what was perturbed, and whether the replay stage ran."""
    notes: tuple[str, ...] = ()
    """What a reader must know, in sentences."""
    version: str = ""
    """Of Wattkeeper."""
    format: str = FORMAT

    def to_json(self) -> str:
        """One JSON document."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @staticmethod
    def from_json(text: str) -> "ReplayReport":
        """Raises DataFileError where the text is no such document."""
        try:
            found = _ADAPTER.validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            raise DataFileError(f"this is no report of a replay: {where}: {first['msg']}") from error
        if found.format != FORMAT:
            raise DataFileError(f"a report of format {found.format!r} cannot be read, only {FORMAT!r}")
        return found

    def policies(self) -> tuple[str, ...]:
        """Names in the order of the runs."""
        return tuple(dict.fromkeys(run.policy for run in self.runs))

    def of(self, policy: str, trace: str | None = None) -> tuple[Run, ...]:
        """The runs of a policy, one per seed and trace."""
        return tuple(run for run in self.runs if run.policy == policy and trace in (None, run.trace))


_ADAPTER: pydantic.TypeAdapter[ReplayReport] = pydantic.TypeAdapter(ReplayReport)
