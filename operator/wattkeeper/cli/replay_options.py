"""From the options of `wattkeeper replay` to what is played: traffic, service, fleet, metrics."""

import math
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import typer

from wattkeeper.api.quantities import parse_duration_seconds
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.replay import sizing
from wattkeeper.replay.campaign import Played
from wattkeeper.replay.manifests import Facts, Manifests
from wattkeeper.replay.stage import MetricsPath, ReplayError, Stage
from wattkeeper.telemetry.prometheus import PrometheusSettings
from wattkeeper.telemetry.promql import QuerySettings
from wattkeeper.traces import build, record
from wattkeeper.traces.spec import TraceSpec
from wattkeeper.traces.trace import Trace
from wattkeeper.twin.deployment import Lifecycle, draw_failures
from wattkeeper.twin.routers import ROUTERS

MADE_UP_DAY = "diurnal:trough=0.5,peak=4,for=1d,lengths=1155~1.1/211~0.8"
"""Played where no traffic is named: a small service, with the lengths of Azure's conversations of 2023."""


@dataclass(frozen=True, kw_only=True)
class TrafficOptions:
    """What is to be played."""

    line: str
    start: str | None = None
    until: str | None = None
    scale: float | None = None
    lengths: str | None = None
    data: Path | None = None

    def spec(self) -> TraceSpec:
        """The line with the options put into it. Raises TraceError."""
        given = {"from": self.start, "until": self.until, "scale": self.scale, "lengths": self.lengths}
        added = [f"{name}={value}" for name, value in given.items() if value is not None]
        if not added:
            return TraceSpec.parse(self.line)
        # A name without options ends where they begin; a colon inside a path stays.
        joint = "," if TraceSpec.parse(self.line).what != self.line else ":"
        return TraceSpec.parse(self.line + joint + ",".join(added))

    def played(self) -> Played:
        """Drawn anew for each seed where it is drawn at all."""
        spec, data = self.spec(), self.data
        first = build.build(spec, data=data)

        def of_seed(seed: int) -> Trace:
            if seed == 0:
                return first
            again = build.build(replace(spec, seed=spec.seed + seed), data=data)
            same = len(again) == len(first) and bool(np.array_equal(again.times_seconds, first.times_seconds))
            return first if same else again

        return Played(name=_short(spec), of_seed=of_seed)


def _short(spec: TraceSpec) -> str:
    """A name for tables: the file without its folder, and which part."""
    end = spec.end_seconds or (spec.start_seconds + spec.span_seconds if spec.span_seconds else None)
    part = "" if not spec.start_seconds and spec.end_seconds is None else f" {_hours(spec.start_seconds)}-{_hours(end)}"
    return f"{Path(spec.what).stem}{part}" + ("" if spec.scale == 1.0 else f" x{spec.scale:g}")


def _hours(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds / 3600.0:g}h"


def recorded_history(url: str, days: float, namespaces: list[str], matchers: list[str], folder: Path) -> str:
    """The history of a user's own Prometheus as a file in `folder`. Raises WattkeeperError."""
    try:
        settings = PrometheusSettings(
            url=url,
            queries=QuerySettings(rate_window_seconds=300.0, namespaces=tuple(namespaces), matchers=tuple(matchers)),
            timeout_seconds=60.0,
        )
    except ValueError as error:
        raise WattkeeperError(str(error)) from error
    found = record.record(settings, end_seconds=time.time(), days=days)
    path = folder / "prometheus.json"
    found.write(path)
    typer.echo(f"read {days:g} days from {url}: {found.gaps} of {len(found.windows)} windows are gaps", err=True)
    return str(path)


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """A folder that goes when the command ends."""
    return tempfile.TemporaryDirectory(prefix="wattkeeper-replay-")


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """The service as flags tell it."""

    model: str
    accelerator: str
    tensor_parallel: int
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    max_model_len: int | None
    ttft: str
    tpot: str
    percentile: float
    min_attainment: float

    def facts(self) -> Facts:
        """The same as a manifest would say."""
        return Facts(
            model=self.model,
            accelerator=self.accelerator,
            engine=EngineSettings(
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_batched_tokens,
                max_model_len=self.max_model_len,
                tensor_parallel_size=self.tensor_parallel,
            ),
            slo=Slo(
                ttft=_target(self.ttft, self.percentile),
                tpot=_target(self.tpot, self.percentile),
                min_attainment=self.min_attainment,
            ),
            namespace="replay",
            replicas=0,
            min_replicas=1,
            max_replicas=None,
        )


def _target(text: str, percentile: float) -> LatencyTarget | None:
    return None if text == "none" else LatencyTarget(percentile=percentile, seconds=seconds(text))


def seconds(text: str) -> float:
    """Of a duration such as 90s. Raises ReplayError."""
    try:
        return float(text) if text.replace(".", "", 1).isdigit() else parse_duration_seconds(text)
    except ValueError as error:
        raise ReplayError(f"{text!r} is no duration: write for example 500ms, 90s or 2h") from error


def outage(text: str) -> tuple[float, float]:
    """Begin and end in seconds of FROM-UNTIL. Raises ReplayError."""
    begin, dash, end = text.partition("-")
    if not dash:
        raise ReplayError(f"{text!r} is no outage: write FROM-UNTIL, such as 2h-150m")
    return seconds(begin), seconds(end)


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """Where it runs."""

    gpus: int | None
    gpus_per_node: int
    replicas: int | None
    startup: str
    router: str
    failures_per_day: float
    parked_counts: bool


def stage(
    facts: Facts,
    fleet: FleetOptions,
    metrics: MetricsPath,
    known: Trace,
    *,
    span_seconds: float,
    given: Manifests | None,
) -> tuple[Stage, int]:
    """The stage, and how many replicas the peak needs. Sized on `known` where the user does not say it."""
    if fleet.router not in ROUTERS:
        raise ReplayError(f"there is no router {fleet.router!r}; choose one of {', '.join(ROUTERS)}")
    if facts.slo.ttft is None and facts.slo.tpot is None:
        raise ReplayError("an SLO needs a target for TTFT, TPOT or both")
    one = facts.engine.tensor_parallel_size * facts.engine.pipeline_parallel_size
    per_node = max(fleet.gpus_per_node, one)
    draft = Stage(
        model=facts.model,
        accelerator=facts.accelerator,
        engine=facts.engine,
        namespace=facts.namespace,
        slo=facts.slo,
        gpus=per_node,
        gpus_per_node=per_node,
        replicas=1,
        min_replicas=facts.min_replicas,
    )
    peak = fleet.replicas or (facts.replicas if given is not None else 0) or sizing.static_replicas(draft, known)
    # As many more as a roll-out or a fourth more traffic than ever seen asks for.
    spare = max(1, math.ceil(0.25 * peak))
    most = max(peak, facts.max_replicas) if facts.max_replicas is not None else peak + spare
    made = replace(
        draft,
        gpus=fleet.gpus if fleet.gpus is not None else _gpus_for(most, one, per_node),
        replicas=peak,
        lifecycle=Lifecycle(startup_seconds=seconds(fleet.startup)),
        failures=draw_failures(per_day=fleet.failures_per_day, span_seconds=span_seconds, seed=0),
        router=fleet.router,
        parked_counts=fleet.parked_counts,
        metrics=metrics,
    )
    return made, peak


def _gpus_for(replicas: int, one: int, per_node: int) -> int:
    """GPUs of whole nodes but the last, which has as many as the rest needs."""
    of_node = per_node // one
    whole, rest = divmod(replicas, of_node)
    return whole * per_node + rest * one
