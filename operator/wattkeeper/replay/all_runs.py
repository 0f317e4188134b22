"""All runs of a campaign: rivals tuned on other traffic first, then every policy with every seed."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from wattkeeper.replay import kept, one_run, parallel
from wattkeeper.replay.campaign import Campaign, Played
from wattkeeper.replay.one_run import MissingError, Outcome, Task
from wattkeeper.replay.parallel import Say
from wattkeeper.replay.result import Run
from wattkeeper.rivals import registry, tuning
from wattkeeper.rivals.registry import RIVALS, STATIC_PEAK
from wattkeeper.rivals.settings import Parameters, Setting
from wattkeeper.rivals.tuning import Tuned
from wattkeeper.traces.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What tuning found for each rival, in words and numbers."""

    name: str
    """Of the traffic that was tuned on."""
    setting: Setting
    """What rivals are built from once the fixed fleet is tuned."""
    tuned: dict[str, Tuned] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    """Rivals whose tuning is not kept to its end, where nothing was to be played."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What there is."""

    runs: tuple[Run, ...]
    """By policy, then seed."""
    missing: tuple[str, ...] = ()
    """Policies, with their seed, that are not kept, where nothing was to be played."""


def tune(campaign: Campaign, trace: Trace, name: str, *, processes: int, say: Say) -> Tuning:
    """Search parameters of every rival of the campaign on other traffic, a rival to a process.

    The fixed fleet comes first: how many replicas the peak really needs is what the others start from.
    """
    _prepare(campaign)
    sha256 = trace.sha256()

    def searched(policies: list[str], setting: Setting) -> dict[str, Tuned]:
        tasks = [
            Task(campaign=campaign, policy=policy, trace=trace, trace_sha256=sha256, name=name, setting=setting)
            for policy in policies
        ]
        found = parallel.each(_tuned, tasks, processes=processes, done=lambda *_: None, say=say)
        return {task.policy: each for task, each in zip(tasks, found, strict=True) if each is not None}

    setting, rivals = campaign.setting, [policy for policy in campaign.policies if policy in RIVALS]
    tuned = searched([STATIC_PEAK] if rivals else [], setting)
    if STATIC_PEAK in tuned:
        setting = setting.with_peak(round(tuned[STATIC_PEAK].parameters["replicas"]))
        tuned |= searched([policy for policy in rivals if policy != STATIC_PEAK], setting)
    missing = tuple(policy for policy in rivals if policy not in tuned)
    return Tuning(name=name, setting=setting, tuned=tuned, missing=missing)


def runs(
    campaign: Campaign,
    played: Played,
    *,
    tuned: Tuning | None,
    processes: int,
    done: Callable[[Outcome], None],
    say: Say,
) -> Runs:
    """All runs; `done` is told of each as soon as it is there."""
    _prepare(campaign)
    traces = [played.of_seed(seed) for seed in range(campaign.seeds)]
    digests = {id(trace): trace.sha256() for trace in traces}
    missing = () if tuned is None else tuned.missing
    tasks = [
        Task(
            campaign=campaign,
            policy=policy,
            trace=traces[seed],
            trace_sha256=digests[id(traces[seed])],
            name=played.name,
            seed=seed,
            setting=campaign.setting if tuned is None else tuned.setting,
            parameters={} if tuned is None or policy not in tuned.tuned else tuned.tuned[policy].parameters,
        )
        for policy in campaign.policies
        if policy not in missing
        for seed in range(campaign.seeds)
    ]
    found = parallel.each(one_run.run, tasks, processes=processes, done=lambda _, outcome: done(outcome), say=say)
    lacking = [f"{task.policy} (seed {task.seed})" for task, each in zip(tasks, found, strict=True) if not each.run]
    return Runs(
        runs=tuple(each.run for each in found if each.run is not None),
        missing=(*(f"{policy} (its tuning)" for policy in missing), *lacking),
    )


def _prepare(campaign: Campaign) -> None:
    if campaign.kept is not None:
        kept.prepare(campaign.kept, must_exist=campaign.only_kept)


def _tuned(task: Task, say: Say) -> Tuned | None:
    """None: its trials are not all kept, and nothing was to be played."""
    rival, campaign = registry.find(task.policy), task.campaign

    def evaluate(parameters: Parameters) -> tuple[float, float]:
        found = one_run.trial(replace(task, parameters=parameters), say)
        return found.energy_joules, found.attainment

    try:
        found = tuning.tune(
            defaults=rival.defaults(task.setting),
            grid=rival.grid(task.setting),
            evaluate=evaluate,
            goal=campaign.stage.slo.min_attainment,
            evaluations=campaign.evaluations,
        )
    except MissingError as error:
        say(str(error))
        return None
    say(f"tuned {task.policy}: {found.text()}")
    return found
