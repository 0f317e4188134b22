"""One run of a campaign, or one trial of tuning: taken from the kept ones, else played and kept."""

import time
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pydantic

from wattkeeper.replay import campaign as campaigns
from wattkeeper.replay import fingerprint
from wattkeeper.replay.campaign import PLANNERS, Campaign
from wattkeeper.replay.kept import Found, Kept
from wattkeeper.replay.parallel import Say
from wattkeeper.replay.planner import make_planner
from wattkeeper.replay.play import Cell, MakePolicy, Moment, Progress, play
from wattkeeper.replay.result import JOULES_PER_KWH, Run
from wattkeeper.replay.stage import ReplayError
from wattkeeper.rivals import registry
from wattkeeper.rivals.settings import Parameters, Setting
from wattkeeper.traces.trace import Trace

PROGRESS_SECONDS = 30.0
"""Wall time between two lines about a run that is under way."""
_TRIAL_INTERVAL_SECONDS = 600.0
_RIVAL_CODE = ("wattkeeper.replay.play", "wattkeeper.rivals.registry")
_PLANNER_CODE = ("wattkeeper.replay.play", "wattkeeper.replay.planner")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to play."""

    campaign: Campaign
    policy: str
    trace: Trace
    trace_sha256: str
    name: str
    """Of the trace."""
    seed: int = 0
    setting: Setting
    """What rivals are built from."""
    parameters: Parameters = field(default_factory=dict)
    """Of rivals; those that are not given take their default."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one task ended."""

    run: Run | None
    """None: it is not among the kept ones, and nothing was to be played."""
    kept: bool
    """Whether it was taken from the kept ones."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What tuning wants to know of a run."""

    energy_joules: float
    attainment: float


class _GivenUpError(Exception):
    """A trial cannot reach the goal any more."""

    def __init__(self, moment: Moment) -> None:
        super().__init__()
        self.moment = moment


class MissingError(ReplayError):
    """What was asked for is not kept, and nothing was to be played."""


_RUNS: pydantic.TypeAdapter[Run] = pydantic.TypeAdapter(Run)
_TRIALS: pydantic.TypeAdapter[TrialResult] = pydantic.TypeAdapter(TrialResult)


def run(task: Task, say: Say) -> Outcome:
    """The run of a task; `say` is told how far it is, and of kept files that cannot be used."""
    make, parameters, decides = _policy(task)
    interval = task.campaign.interval_seconds
    facts = _facts(task, decides, interval_seconds=interval)
    title = f"{task.policy} {task.name} seed {task.seed}"
    found = _find(task, _RUNS, title, facts, say)
    if found.result is not None:
        return Outcome(run=found.result, kept=True)
    if task.campaign.only_kept:
        return Outcome(run=None, kept=False)
    cell = Cell(
        trace=task.trace,
        trace_name=task.name,
        stage=task.campaign.stage,
        seed=task.seed,
        parameters=parameters,
        interval_seconds=interval,
    )
    played = play(cell, make, progress=_reporting(f"{task.policy}, seed {task.seed}", say))
    if task.campaign.kept is not None:
        Kept(folder=task.campaign.kept, adapter=_RUNS).put(title, facts, played)
    return Outcome(run=played, kept=False)


def trial(task: Task, say: Say) -> TrialResult:
    """Energy and attainment of a rival with these parameters on the tuning days.

    A trial that has missed more requests than the goal allows in all ends, with its energy and attainment until then.
    Raises MissingError where the trial is not kept and nothing was to be played.
    """
    stage = task.campaign.stage
    if task.campaign.tune_simulated_replicas is not None:
        stage = replace(stage, simulated_replicas=task.campaign.tune_simulated_replicas)
        task = replace(task, campaign=replace(task.campaign, stage=stage))
    make, parameters, decides = _policy(task)
    facts = _facts(task, decides, interval_seconds=_TRIAL_INTERVAL_SECONDS)
    title = f"tuning {task.policy} {task.name}"
    found = _find(task, _TRIALS, title, facts, say)
    if found.result is not None:
        return found.result
    if task.campaign.only_kept:
        raise MissingError(f"the tuning of {task.policy} on {task.name} is not kept to its end")
    cell = Cell(
        trace=task.trace,
        trace_name=task.name,
        stage=stage,
        seed=task.seed,
        parameters=parameters,
        interval_seconds=_TRIAL_INTERVAL_SECONDS,
    )
    values = ", ".join(f"{name} {value:g}" for name, value in task.parameters.items())
    reporting = _reporting(f"tuning {task.policy} ({values})", say)
    allowed = (1.0 - stage.slo.min_attainment) * len(task.trace)

    def progress(moment: Moment) -> None:
        reporting(moment)
        if moment.missed > allowed:
            raise _GivenUpError(moment)

    try:
        played = play(cell, make, progress=progress)
        energy, attainment = played.energy.total_kwh, played.requests.attainment or 0.0
    except _GivenUpError as error:
        moment = error.moment
        energy, attainment = moment.energy_kwh, moment.met / (moment.met + moment.missed)
    result = TrialResult(energy_joules=energy * JOULES_PER_KWH, attainment=attainment)
    if task.campaign.kept is not None:
        Kept(folder=task.campaign.kept, adapter=_TRIALS).put(title, facts, result)
    return result


def _find(
    task: Task, adapter: pydantic.TypeAdapter[Result], title: str, facts: dict[str, Any], say: Say
) -> Found[Result]:
    if task.campaign.kept is None:
        return Found()
    found = Kept(folder=task.campaign.kept, adapter=adapter).find(title, facts)
    if found.trouble:
        then = "it counts as missing" if task.campaign.only_kept else "it is played again"
        say(f"{found.trouble}: {then}")
    return found


def _policy(task: Task) -> tuple[MakePolicy, dict[str, float | int | str | bool | None], dict[str, Any]]:
    """How the policy is made, its parameters for the result, and all else about it that decides the result."""
    campaign, name = task.campaign, task.policy
    if name in PLANNERS:
        setup = campaigns.planner_setup(campaign.stage, name, campaign.planner)
        shown = {"tick_seconds": campaign.planner.tick_seconds, "check": campaign.planner.check}
        objects = (setup.service, setup.workload, setup.profiles)
        decides = {
            "objects": objects,
            "settings": setup.settings,
            "energy_model": setup.energy.version,
            "code": fingerprint.of_modules(*_PLANNER_CODE),
        }
        return make_planner(setup), {**shown}, decides
    rival, setting = registry.find(name), task.setting
    parameters = {**rival.defaults(setting), **task.parameters}
    decides = {"setting": setting, "code": fingerprint.of_modules(*_RIVAL_CODE)}
    return (
        lambda _deployment, _collector: rival.build(setting, parameters),
        {**parameters},
        {
            **decides,
            "parameters": parameters,
        },
    )


def _facts(task: Task, decides: dict[str, Any], *, interval_seconds: float) -> dict[str, Any]:
    return {
        "policy": task.policy,
        "trace": task.name,
        "trace_sha256": task.trace_sha256,
        "stage": task.campaign.stage,
        "seed": task.seed,
        "interval_seconds": interval_seconds,
        **decides,
    }


def _reporting(title: str, say: Say) -> Progress:
    """Lines about a long run, one every PROGRESS_SECONDS of wall time."""
    began = last = time.monotonic()

    def progress(moment: Moment) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PROGRESS_SECONDS:
            return
        last = now
        say(
            f"  {title}: {moment.time_seconds / 3600.0:.1f} of {moment.span_seconds / 3600.0:.1f} h, "
            f"{moment.requests:,} requests, {moment.energy_kwh:.2f} kWh so far, {now - began:.0f} s"
        )

    return progress
