"""What simulated fleets cost, and how far a sampled fleet is from one whose replicas are all simulated.

Traffic: the digitised week of Azure's conversation service in 2024 with lengths of its hour of 2023, on Llama 3.1 8B,
one H100 per replica. Fleets have a fixed number of replicas, or follow a fixed schedule; no policy is part of it.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table
from scipy import stats

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.traces import formats, rates
from wattkeeper.traces.trace import FloatArray, Lengths, RateSeries, Trace, TraceError, joined
from wattkeeper.twin import hardware
from wattkeeper.twin.deployment import Deployment, Lifecycle
from wattkeeper.twin.fleet import Fleet, Service
from wattkeeper.twin.ledger import Attainment, SloTargets
from wattkeeper.twin.nodes import Inventory

RATES_FILE = "azure-2024-digitised/azure2024_conv_week_digitised_10min.csv"
LENGTHS_FILE = "azure-2023/AzureLLMInferenceTrace_conv.csv"
DAY_SECONDS = 86400.0
BUSIEST_DAY = 2
"""Of the week: 4.8 million requests."""
HELD_OUT_HOURS = (32.0, 63.0, 110.0, 147.0)
"""Since the week began: a rise, a peak, an evening and a weekend's night."""
COST_SECONDS = 600.0
REPLICAS = 8
FLEETS: tuple[tuple[int, int | None], ...] = ((1, None), (4, None), (8, None), (32, None), (8, 2), (32, 2))
"""(replicas, how many of them are simulated) whose cost is measured; None: all."""
_STEP_SECONDS = 30.0
_SLO = SloTargets(ttft_seconds=0.15, tpot_seconds=0.014)
_FIGURES = ("energy", "attainment", "ttft_p50", "ttft_p95", "tpot_p50", "tpot_p95")


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Rates over a week and pairs of lengths."""

    rates: RateSeries
    lengths: Lengths

    def trace(self, *, from_seconds: float, seconds: float, seed: int, factor: float = 1.0) -> Trace:
        """Poisson arrivals at the week's rates times `factor`."""
        intensity = rates.intensity(
            self.rates, start_seconds=from_seconds, end_seconds=from_seconds + seconds, scale=factor, seed=seed
        )
        return joined(rates.draw(intensity, lengths=self.lengths, seed=seed), span_seconds=seconds)


def traffic(traces: Path) -> Traffic:
    """From the folder of traces. Raises TraceError where a file is missing or holds something else."""
    series, requests = formats.load(traces / RATES_FILE), formats.load(traces / LENGTHS_FILE)
    if not isinstance(series, RateSeries):
        raise TraceError(f"{traces / RATES_FILE}: expected rates over time")
    if not isinstance(requests, Trace):
        raise TraceError(f"{traces / LENGTHS_FILE}: expected requests")
    lengths = Lengths(name=LENGTHS_FILE, prompt_tokens=requests.prompt_tokens, output_tokens=requests.output_tokens)
    return Traffic(rates=series, lengths=lengths)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run. Processor time is that of the simulation, without making the trace."""

    attainment: Attainment
    figures: FloatArray
    """In the order of `_FIGURES`: joules, share, seconds."""
    cpu_seconds: float
    wall_seconds: float


def play(
    trace: Trace,
    *,
    replicas: int,
    simulated: int | None,
    moves: Sequence[tuple[float, int]] = (),
    progress: Callable[[float], None] = lambda _: None,
) -> Outcome:
    """A fleet against a trace; `moves` are (seconds, replicas) from then on."""
    spec = hardware.replica_hardware(
        model="meta-llama/Llama-3.1-8B-Instruct", accelerator="h100", engine=EngineSettings()
    )
    inventory = Inventory()
    inventory.ensure("node", spec.card, spec.gpus * max(replicas, *(count for _, count in moves), 0) * 2)
    fleet = Fleet(inventory)
    fleet.services["chat"] = service = Service(name="chat", slo=_SLO, arrivals=trace, simulated_replicas=simulated)
    deployment = Deployment(
        fleet, name="chat", namespace="bench", hardware=spec, replicas=replicas, lifecycle=Lifecycle()
    )
    cpu, wall, left = time.process_time(), time.perf_counter(), list(moves)
    while fleet.now < trace.span_seconds:
        if left and left[0][0] <= fleet.now:
            deployment.scale(left.pop(0)[1])
        deployment.advance(min(fleet.now + _STEP_SECONDS, trace.span_seconds))
        progress(fleet.now / trace.span_seconds)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    attainment = service.ledger.attainment()
    _, ttft, tpot = service.ledger.samples()
    figures = [service.energy_joules, attainment.share or 0.0]
    figures += [float(np.percentile(column, q)) for column in (ttft, tpot) for q in (50, 95)]
    return Outcome(attainment=attainment, figures=np.array(figures), cpu_seconds=cpu, wall_seconds=wall)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one fleet: processor time per request of the trace, the least of the rounds."""

    replicas: int
    simulated: int | None
    requests: int
    microseconds: float


def costs(source: Traffic, *, rounds: int = 3) -> list[Cost]:
    """Fleets of several sizes, each replica with a share of a busy ten minutes."""
    found = []
    for replicas, simulated in FLEETS:
        trace = source.trace(
            from_seconds=HELD_OUT_HOURS[1] * 3600.0, seconds=COST_SECONDS, seed=0, factor=replicas / 10.0
        )
        least = min(play(trace, replicas=replicas, simulated=simulated).cpu_seconds for _ in range(rounds))
        found.append(
            Cost(replicas=replicas, simulated=simulated, requests=len(trace), microseconds=least / len(trace) * 1e6)
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Error:
    """A sampled fleet against the same one in full: mean over hours and seeds, with its 95 % interval."""

    simulated: int
    moving: bool
    """Whether two replicas of the fleet come and go twice an hour."""
    cells: int
    figure: str
    unit: str
    mean: float
    low: float
    high: float
    worst: float
    """Of a single cell, in absolute terms."""


def errors(
    source: Traffic,
    *,
    seeds: int = 3,
    seconds: float = 3600.0,
    simulated: Sequence[int] = (1, 2, 3),
    progress: Callable[[float], None] = lambda _: None,
) -> list[Error]:
    """Sampled against exact on held-out hours; the same requests in both."""
    found = []
    moves = [(seconds * share, REPLICAS - 2 * (index % 2 == 0)) for index, share in enumerate((0.2, 0.4, 0.6, 0.8))]
    total, done = 2 * len(HELD_OUT_HOURS) * seeds, 0
    for moving in (False, True):
        plan = moves if moving else ()
        differences: dict[int, list[FloatArray]] = {count: [] for count in simulated}
        for hour in HELD_OUT_HOURS:
            for seed in range(seeds):
                trace = source.trace(from_seconds=hour * 3600.0, seconds=seconds, seed=seed)
                exact = play(trace, replicas=REPLICAS, simulated=None, moves=plan).figures
                for count in simulated:
                    other = play(trace, replicas=REPLICAS, simulated=count, moves=plan).figures
                    relative = 100.0 * (other / exact - 1.0)
                    relative[1] = 100.0 * (other[1] - exact[1])
                    differences[count].append(relative)
                done += 1
                progress(done / total)
        for count in simulated:
            cells = np.array(differences[count])
            half = stats.t.ppf(0.975, len(cells) - 1) * cells.std(axis=0, ddof=1) / np.sqrt(len(cells))
            for index, figure in enumerate(_FIGURES):
                mean = float(cells[:, index].mean())
                found.append(
                    Error(
                        simulated=count,
                        moving=moving,
                        cells=len(cells),
                        figure=figure,
                        unit="points" if figure == "attainment" else "%",
                        mean=mean,
                        low=mean - float(half[index]),
                        high=mean + float(half[index]),
                        worst=float(np.abs(cells[:, index]).max()),
                    )
                )
    return found


@dataclass(frozen=True, kw_only=True)
class LongRun:
    """A day or a week in this process."""

    days: float
    replicas: int
    simulated: int | None
    requests: int
    finished: int
    lost: int
    unfinished: int
    trace_seconds: float
    """Wall time to make the trace."""
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    """Resident memory of the process at its highest, up to the end of this run."""


def long_run(
    source: Traffic,
    *,
    first_day: float,
    days: float,
    simulated: int | None,
    progress: Callable[[float], None] = lambda _: None,
) -> LongRun:
    """A stretch of the week against a fleet that can carry its peak."""
    began = time.perf_counter()
    trace = source.trace(from_seconds=first_day * DAY_SECONDS, seconds=days * DAY_SECONDS, seed=1)
    made = time.perf_counter() - began
    outcome = play(trace, replicas=REPLICAS, simulated=simulated, progress=progress)
    counts = outcome.attainment
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return LongRun(
        days=days,
        replicas=REPLICAS,
        simulated=simulated,
        requests=len(trace),
        finished=counts.finished,
        lost=counts.lost,
        unfinished=counts.unfinished,
        trace_seconds=made,
        cpu_seconds=outcome.cpu_seconds,
        wall_seconds=outcome.wall_seconds,
        peak_bytes=peak if sys.platform == "darwin" else peak * 1024,
    )


def cost_table(found: Sequence[Cost]) -> Table:
    """For people."""
    table = Table("replicas", "simulated", "requests", "µs per request", title="Processor time")
    for cost in found:
        table.add_row(
            str(cost.replicas), str(cost.simulated or "all"), f"{cost.requests:,}", f"{cost.microseconds:.1f}"
        )
    return table


def error_table(found: Sequence[Error]) -> Table:
    """For people."""
    cells = found[0].cells if found else 0
    table = Table(
        "simulated", "fleet", "figure", "mean", "95 % interval", "worst cell",
        title=f"Sampled less exact, {REPLICAS} replicas, {cells} cells each",
    )  # fmt: skip
    for error in found:
        table.add_row(
            str(error.simulated),
            "moving" if error.moving else "fixed",
            error.figure.replace("_", " "),
            f"{error.mean:+.2f} {error.unit}",
            f"{error.low:+.2f} to {error.high:+.2f}",
            f"{error.worst:.2f}",
        )
    return table


def long_table(found: Sequence[LongRun]) -> Table:
    """For people."""
    table = Table("days", "replicas", "simulated", "requests", "lost", "trace s", "CPU s", "wall s", "peak MiB")
    for run in found:
        table.add_row(
            f"{run.days:g}",
            str(run.replicas),
            str(run.simulated or "all"),
            f"{run.requests:,}",
            f"{run.lost:,}",
            f"{run.trace_seconds:.1f}",
            f"{run.cpu_seconds:.1f}",
            f"{run.wall_seconds:.1f}",
            f"{run.peak_bytes / 2**20:,.0f}",
        )
    return table
