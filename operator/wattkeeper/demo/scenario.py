"""What the demo plays: a day of traffic, a Deployment sized for its peak, and the SLO that is asked for."""

import copy
import importlib.resources
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from wattkeeper.actuators import engine_args
from wattkeeper.api.quantities import parse_duration_seconds
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces import build as trace_build
from wattkeeper.traces import generate
from wattkeeper.traces.spec import TraceSpec
from wattkeeper.traces.trace import Lengths, RateSeries, Trace
from wattkeeper.twin import batch
from wattkeeper.twin.ledger import SloTargets

Json = dict[str, Any]
WINDOW_SECONDS = 600.0
SIZING_SECONDS = 1800.0
LARGEST_FLEET = 64
DAY_SCALE = {"code": 0.3, "conversation": 0.7}
"""The recorded services are large; this share of their rate needs a handful of replicas."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Everything that is fixed before the run starts."""

    title: str
    source: str
    trace: Trace
    objects: tuple[Json, ...]
    model: str
    accelerator: str
    engine: EngineSettings
    slo: SloTargets
    min_attainment: float
    replicas: int
    """Of the static fleet; the live one starts with as many and may not have more."""

    def object(self, kind: str) -> Json:
        """The first object of a kind."""
        return next(each for each in self.objects if each["kind"] == kind)


def shipped_day(*, traffic: str, seed: int, hours: float) -> Trace:
    """A recorded day of `code` or `conversation` traffic, as requests."""
    text = importlib.resources.files(__package__).joinpath("day.yaml").read_text(encoding="utf-8")
    days: Json = yaml.safe_load(text)
    if traffic not in days:
        raise WattkeeperError(f"there is no traffic {traffic!r}; choose one of {', '.join(sorted(days))}")
    day = days[traffic]
    scale = DAY_SCALE[traffic] / 60.0
    series = RateSeries(
        times_seconds=tuple(index * WINDOW_SECONDS for index in range(len(day["requests_per_minute"]))),
        requests_per_second=tuple(rate * scale for rate in day["requests_per_minute"]),
    )
    return generate.generate(
        series,
        prompt=_equally_likely(day["prompt_tokens"]),
        output=_equally_likely(day["output_tokens"]),
        seed=seed,
        gap_cv=float(day["gap_cv"]),
        seconds=hours * 3600.0,
    )


def recorded(text: str, *, seed: int, hours: float, rate_scale: float, data: Path | None = None) -> Trace:
    """Traffic of the user's (see docs/traces.md), repeated to fill the hours; rates get the lengths of the shipped day.

    Raises TraceError: unreadable, or not such a line of text. `data` is the folder of public traces.
    """
    spec = TraceSpec.parse(text)
    seconds = hours * 3600.0
    day = shipped_day(traffic="code", seed=seed, hours=1.0)
    lengths = Lengths(name="code", prompt_tokens=day.prompt_tokens, output_tokens=day.output_tokens)
    found = trace_build.build(replace(spec, seed=spec.seed + seed), data=data, lengths=lengths)
    return found.scaled(rate_scale, seed=seed).repeated(seconds)


def steady(*, rate: float, seed: int, hours: float) -> Trace:
    """Poisson arrivals at one rate, with the lengths of the shipped day of conversations."""
    lengths = shipped_day(traffic="conversation", seed=seed, hours=1.0)
    return generate.generate(
        RateSeries(times_seconds=(0.0, hours * 3600.0), requests_per_second=(rate, rate)),
        prompt=_equally_likely(lengths.prompt_tokens.tolist()),
        output=_equally_likely(lengths.output_tokens.tolist()),
        seed=seed,
    )


def _equally_likely(tokens: list[int]) -> LengthDistribution:
    ordered = tuple(float(each) for each in sorted(tokens))
    return LengthDistribution(tokens=ordered, weights=(1.0 / len(ordered),) * len(ordered))


def static_size(
    trace: Trace,
    *,
    model: str,
    accelerator: str,
    engine: EngineSettings,
    slo: SloTargets,
    min_attainment: float,
    guess: int = 6,
) -> int:
    """The fewest replicas that meet the SLO in the busiest half hour without ever changing anything."""
    peak = trace.busiest(SIZING_SECONDS)

    def enough(replicas: int) -> bool:
        run = batch.play_static(
            trace=peak, replicas=replicas, model=model, accelerator=accelerator, engine=engine, slo=slo
        )
        share = run.service.ledger.attainment().share
        return share is None or share >= min_attainment

    low, high = 0, guess
    while not enough(high):
        low, high = high, 2 * high
        if high > LARGEST_FLEET:
            raise WattkeeperError(
                f"even {low} replicas of {model} do not meet the SLO in the busiest half hour of this trace: lower the "
                "rate with --rate-scale"
            )
    while high - low > 1:
        # The first guess is usually right, so the neighbour below is tried before halving.
        middle = high - 1 if high == guess else (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def build(*, trace: Trace, title: str, source: str) -> Scenario:
    """Size the static fleet for the trace and fill in the example's manifests."""
    text = importlib.resources.files(__package__).joinpath("example.yaml").read_text(encoding="utf-8")
    objects: list[Json] = list(yaml.safe_load_all(text))
    by_kind = {each["kind"]: each for each in objects}
    spec = by_kind["InferenceService"]["spec"]
    pod_spec = by_kind["Deployment"]["spec"]["template"]["spec"]
    engine = engine_args.read_engine(pod_spec, spec["targetRef"]["container"])
    slo = SloTargets(
        ttft_seconds=parse_duration_seconds(spec["slo"]["ttft"]["target"]),
        tpot_seconds=parse_duration_seconds(spec["slo"]["tpot"]["target"]),
    )
    accelerator, attainment = spec["accelerator"]["type"], float(spec["slo"]["minAttainment"])
    replicas = static_size(
        trace, model=spec["model"], accelerator=accelerator, engine=engine, slo=slo, min_attainment=attainment
    )
    by_kind["Deployment"]["spec"]["replicas"] = replicas
    spec["levers"]["replicas"]["max"] = replicas
    node = by_kind["Node"]
    objects.remove(node)
    # One GPU more than the fleet needs, for the pod that a rolling update adds.
    count = -(-(replicas + 1) // int(node["status"]["allocatable"]["nvidia.com/gpu"]))
    objects.extend(_numbered(node, index) for index in range(1, count + 1))
    return Scenario(
        title=title,
        source=source,
        trace=trace,
        objects=tuple(objects),
        model=spec["model"],
        accelerator=accelerator,
        engine=engine,
        slo=slo,
        min_attainment=attainment,
        replicas=replicas,
    )


def _numbered(node: Json, index: int) -> Json:
    numbered = copy.deepcopy(node)
    name = f"{node['metadata']['name']}-{index}"
    numbered["metadata"]["name"] = name
    numbered["metadata"]["labels"]["kubernetes.io/hostname"] = name
    numbered["status"]["addresses"][0]["address"] = f"10.1.0.{index}"
    return numbered
