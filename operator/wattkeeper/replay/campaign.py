"""What is asked of a replay: policies, seeds, how the operator runs, how rivals are tuned; and the report of it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import wattkeeper
from wattkeeper.controller.settings import OperatorSettings, ReplaySettings
from wattkeeper.energy.model import EnergyModel
from wattkeeper.replay import manifests
from wattkeeper.replay.manifests import Levers, Manifests
from wattkeeper.replay.planner import PlannerSetup
from wattkeeper.replay.result import FleetFacts, Goals, ReplayReport, Run, TraceFacts
from wattkeeper.replay.stage import ReplayError, Stage
from wattkeeper.rivals import registry, tuning
from wattkeeper.rivals.registry import STATIC_PEAK
from wattkeeper.rivals.settings import Setting
from wattkeeper.traces.trace import Trace

TOKEN_BUDGETS = (1024, 2048, 8192)
PLANNERS: dict[str, Levers] = {
    "wattkeeper": Levers(power_cap=True),
    "wattkeeper-replicas": Levers(),
    "wattkeeper-cap": Levers(replicas=False, power_cap=True),
    "wattkeeper-clock": Levers(clock=True),
    "wattkeeper-engine": Levers(power_cap=True, token_budgets=TOKEN_BUDGETS),
}
"""The operator with the levers that its name says; with a user's own InferenceService, `wattkeeper` has its levers."""


@dataclass(frozen=True, kw_only=True)
class PlannerChoices:
    """How the operator runs in a replay."""

    tick_seconds: float = 15.0
    check: bool = True
    """The replay stage of the operator, in the same process."""
    check_requests: int = ReplaySettings().requests
    """Counted in each of its replays."""
    believe_time: float = 1.0
    """What it believes of step times, over its own profile."""
    believe_power: float = 1.0
    manifests: Manifests | None = None
    """A user's own."""

    def __post_init__(self) -> None:
        if not self.tick_seconds > 0 or min(self.believe_time, self.believe_power) <= 0 or self.check_requests < 1:
            raise ReplayError("the tick, the factors of belief and the requests of a check must be positive")


@dataclass(frozen=True, kw_only=True)
class Played:
    """Traffic to be replayed: drawn anew for each seed where it is drawn at all."""

    name: str
    of_seed: Callable[[int], Trace]


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What is asked. Everything in it can be sent to another process."""

    stage: Stage
    policies: tuple[str, ...]
    seeds: int = 1
    planner: PlannerChoices = field(default_factory=PlannerChoices)
    interval_seconds: float = 60.0
    setting: Setting
    """What the rivals are built from."""
    evaluations: int = tuning.EVALUATIONS
    tune_simulated_replicas: int | None = None
    """As in the stage, for tuning alone; None: as the stage says."""
    kept: Path | None = None
    """Folder in which what has ended is kept, and from which it is taken; None: nothing is kept."""
    only_kept: bool = False
    """Play nothing: what is not kept is missing."""

    def __post_init__(self) -> None:
        for name in self.policies:
            if name not in PLANNERS:
                registry.find(name)
        if self.seeds < 1:
            raise ReplayError(f"at least one seed is needed, not {self.seeds}")
        if len(set(self.policies)) != len(self.policies):
            raise ReplayError("each policy can be given once")
        if self.only_kept and self.kept is None:
            raise ReplayError("to report kept runs alone, name the folder that they are kept in")


def report(
    campaign: Campaign, found: Sequence[Run], trace: TraceFacts, *, settings: dict[str, Any], notes: Sequence[str]
) -> ReplayReport:
    """All of it."""
    stage, slo = campaign.stage, campaign.stage.slo
    goal = slo.ttft or slo.tpot
    if goal is None:
        raise ReplayError("an SLO needs a target for TTFT, TPOT or both")
    given = {
        name: value for name, value in stage.engine.__dict__.items() if value is not None and name != "vllm_version"
    }
    return ReplayReport(
        traces=(trace,),
        fleet=FleetFacts(
            model=stage.model,
            accelerator=stage.accelerator,
            gpus=stage.gpus,
            gpus_per_replica=stage.gpus_per_replica,
            max_replicas=stage.max_replicas,
            startup_seconds=stage.lifecycle.startup_seconds,
            router=stage.router,
            engine=given,
            parked_counts=stage.parked_counts,
        ),
        goals=Goals(
            ttft_seconds=None if slo.ttft is None else slo.ttft.seconds,
            tpot_seconds=None if slo.tpot is None else slo.tpot.seconds,
            percentile=goal.percentile,
            min_attainment=slo.min_attainment,
        ),
        runs=tuple(found),
        baseline=STATIC_PEAK if STATIC_PEAK in campaign.policies else campaign.policies[0],
        settings=settings,
        notes=tuple(notes),
        version=wattkeeper.__version__,
    )


def trace_facts(name: str, trace: Trace) -> TraceFacts:
    """What was played."""
    minutes = np.bincount((trace.times_seconds // 60.0).astype(np.int64))
    return TraceFacts(
        name=name,
        requests=len(trace),
        span_seconds=trace.span_seconds,
        mean_requests_per_second=len(trace) / trace.span_seconds,
        peak_requests_per_second=float(minutes.max()) / 60.0,
        mean_prompt_tokens=float(trace.prompt_tokens.mean()),
        mean_output_tokens=float(trace.output_tokens.mean()),
        repairs=trace.repairs,
    )


def planner_setup(stage: Stage, name: str, choices: PlannerChoices) -> PlannerSetup:
    """What the operator is given under one of the names in PLANNERS."""
    if choices.manifests is not None and name == "wattkeeper":
        given = manifests.fitted(choices.manifests, stage)
    else:
        given = manifests.made(stage, PLANNERS[name])
    believes = choices.believe_time != 1.0 or choices.believe_power != 1.0
    profile = manifests.believed_profile(stage, time=choices.believe_time, power=choices.believe_power)
    return PlannerSetup(
        name=name,
        service=given.service,
        workload=given.workload,
        profiles=(profile,) if believes else (),
        energy=energy_model(),
        settings=OperatorSettings(
            tick_seconds=choices.tick_seconds,
            rate_window_seconds=stage.metrics.rate_window_seconds,
            # Entries must outlive the time between two passes.
            cap_ttl_seconds=max(OperatorSettings().cap_ttl_seconds, 4.0 * choices.tick_seconds),
            replays=ReplaySettings(workers=1 if choices.check else 0, requests=choices.check_requests),
        ),
    )


@functools.cache
def energy_model() -> EnergyModel:
    """The one that ships with the package, loaded once; physics alone where it cannot be used, as in the operator."""
    return EnergyModel.load_or_physics()
