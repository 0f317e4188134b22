"""What the scale benchmark found: figures, a table for people, JSON for machines."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from wattkeeper.bench import operator
from wattkeeper.bench.operator import Sample

STEPS = ("resolve", "observe", "account", "plan", "act", "status")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of one quantity over the steady passes, in seconds."""

    p50: float
    p99: float
    maximum: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """Percentiles by linear interpolation; with fewer than a hundred passes the 99th lies next to the maximum."""
        return Spread(
            p50=float(np.percentile(values, 50)),
            p99=float(np.percentile(values, 99)),
            maximum=float(max(values)),
        )


@dataclass(frozen=True, kw_only=True)
class ScaleResult:
    """One run. Rates and shares are over the steady passes: those after every service was measured and has settled."""

    services: int
    pods: int
    nodes: int
    api: str
    core: int | None
    tick_seconds: float
    setup_seconds: float
    starting_passes: int
    steady_passes: int
    starting_slowest_seconds: float
    """The slowest pass of the start, when every status is written for the first time."""
    tick: Spread
    tick_cpu: Spread
    """Processor time of the loop's thread: what a pass takes where nothing else wants the core."""
    steps: dict[str, Spread]
    cpu_share: float
    """Processor time of the whole process over wall time: 1 is one core."""
    peak_rss_bytes: int
    requests_per_second: dict[str, float]
    status_writes_per_pass: float
    status_writes_most: int
    actions: dict[str, int]
    collect_seconds: float
    """Of the made-up source."""
    observed_services: int
    failed_passes: int

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def table(self) -> Table:
        """For people."""
        table = Table("seconds", "p50", "p99", "max")
        for name, spread in (("pass", self.tick), ("pass, processor time", self.tick_cpu), *self.steps.items()):
            table.add_row(name, *(f"{value:.3f}" for value in (spread.p50, spread.p99, spread.maximum)))
        return table

    def lines(self) -> list[str]:
        """What the table does not hold."""
        requests = ", ".join(f"{verb} {rate:.1f}" for verb, rate in sorted(self.requests_per_second.items()))
        actions = ", ".join(f"{name} {count}" for name, count in sorted(self.actions.items())) or "none"
        core = "any core" if self.core is None else f"core {self.core}"
        return [
            f"fleet             {self.services:,} services, {self.pods:,} pods, {self.nodes} nodes, {self.api}",
            f"passes            {self.steady_passes} steady every {self.tick_seconds:g} s, {self.failed_passes} failed",
            f"start             {self.starting_passes} passes, the slowest {self.starting_slowest_seconds:.2f} s",
            f"measured services {self.observed_services:,}",
            f"processor         {self.cpu_share:.1%} of one core ({core}), the whole process",
            f"memory            {self.peak_rss_bytes / 2**20:,.0f} MiB resident at most",
            f"API requests      per second: {requests}",
            f"status patches    per pass: {self.status_writes_per_pass:.0f}, at most {self.status_writes_most}",
            f"actions           {actions}",
            f"collection        {self.collect_seconds:.3f} s (made-up measurements)",
            f"set up in         {self.setup_seconds:.0f} s",
        ]


def steady_window(samples: Sequence[Sample], services: int) -> tuple[Sample, list[Sample]]:
    """The last sample of the start, and those after it. Raises ValueError where there are none."""
    begin = operator.starting(samples, services)
    if begin >= len(samples):
        seen = max((sample.observed for sample in samples), default=0)
        raise ValueError(f"{seen} of {services} services were measured within {len(samples)} passes: ask for more")
    return samples[begin - 1], list(samples[begin:])


def summarise(
    samples: Sequence[Sample],
    *,
    services: int,
    pods: int,
    nodes: int,
    api: str,
    core: int | None,
    tick_seconds: float,
    setup_seconds: float,
) -> ScaleResult:
    """Figures of a run. Raises ValueError where it ended before it was steady."""
    before, steady = steady_window(samples, services)
    last = steady[-1]
    seconds = last.at_seconds - before.at_seconds
    writes = np.diff([sample.status_writes for sample in (before, *steady)])
    return ScaleResult(
        services=services,
        pods=pods,
        nodes=nodes,
        api=api,
        core=core,
        tick_seconds=tick_seconds,
        setup_seconds=setup_seconds,
        starting_passes=len(samples) - len(steady),
        steady_passes=len(steady),
        starting_slowest_seconds=max(sample.done.seconds for sample in samples[: len(samples) - len(steady)]),
        tick=Spread.of([sample.done.seconds for sample in steady]),
        tick_cpu=Spread.of([sample.done.cpu_seconds for sample in steady]),
        steps={name: Spread.of([sample.done.steps.get(name, 0.0) for sample in steady]) for name in STEPS},
        cpu_share=(last.process_cpu_seconds - before.process_cpu_seconds) / seconds,
        peak_rss_bytes=last.peak_rss_bytes,
        requests_per_second={
            verb: (count - before.requests.get(verb, 0)) / seconds for verb, count in last.requests.items()
        },
        status_writes_per_pass=float(np.mean(writes)),
        status_writes_most=int(max(writes)),
        actions={name: count - before.actions.get(name, 0) for name, count in last.actions.items()},
        collect_seconds=float(np.median([sample.collect_seconds or math.nan for sample in steady])),
        observed_services=last.observed,
        failed_passes=sum(sample.done.failed for sample in steady),
    )
