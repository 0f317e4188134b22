"""A whole replay: size and tune the rivals on other traffic, then play every policy on the traffic that is asked about.

Rivals are sized and tuned by small searches (`rivals.registry`, `rivals.tuning`), always on traffic that is not the
tested one. The planner is not tuned: it runs with the operator's defaults. Cells (policy x seed) are played side by
side on several processes.
"""

import math
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.queueing import mean_chain
from wattkeeper.replay.planner import Planner, PlannerOptions
from wattkeeper.replay.play import MakePolicy, World, play
from wattkeeper.replay.result import Report, Run, Tuning
from wattkeeper.rivals import tuning, wva
from wattkeeper.rivals.fixed import Fixed
from wattkeeper.rivals.registry import RIVALS, Facts, Parameters
from wattkeeper.traces.traffic import Traffic
from wattkeeper.twin import hardware

_Answer = TypeVar("_Answer")
_WINDOW_SECONDS = 600.0
_QUEUE_PER_SLOT = 10
SIZING_SECONDS = 3600.0
"""The static fleet is sized on the busiest hour of the tuning traffic."""
_LOWEST_CLOCK = 0.45
"""Of the highest: the range that the planner may lock clocks in."""
PLANNERS = {
    "wattkeeper": "replicas, clock lock and token budget",
    "wattkeeper-power": "replicas and clock lock",
    "wattkeeper-replicas": "replicas only",
}
POLICIES = (*RIVALS, *PLANNERS)


class CampaignError(WattkeeperError):
    """A replay that cannot be set up."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """What is asked. Plain data."""

    world: World
    traffic: Traffic
    tuning: Traffic
    policies: tuple[str, ...] = POLICIES
    seeds: int = 1
    tick_seconds: float = 15.0
    replays_per_pass: int = 2
    token_budgets: tuple[int, ...] = (1024, 2048, 8192)
    peak_replicas: int | None = None
    """The static fleet; None: the smallest that meets the goal on the busiest hour of the tuning traffic."""
    title: str = "Replay"
    settings: dict[str, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [name for name in self.policies if name not in POLICIES]
        if unknown or not self.policies:
            raise CampaignError(
                f"there is no policy {', '.join(unknown) or '(none given)'}; known: {', '.join(POLICIES)}"
            )
        if self.seeds < 1:
            raise CampaignError(f"at least one seed is needed, not {self.seeds}")
        if self.traffic == self.tuning:
            raise CampaignError("tuning and test traffic are the same: tune on other hours or another file")


@dataclass(frozen=True, kw_only=True)
class _Cell:
    campaign: Campaign
    traffic: Traffic
    policy: str
    parameters: dict[str, float]
    facts: Facts
    seed: int


def run(campaign: Campaign, *, processes: int = 1, say: Callable[[str], None] = lambda _: None) -> Report:
    """All of it. `say` is told, line by line, what is done. Raises WattkeeperError where something cannot be played."""
    world = campaign.world
    tuning_trace = campaign.tuning.load(seed=0)
    test_trace = campaign.traffic.load(seed=0)
    facts = _facts(campaign, tuning_trace, say)
    with _Pool(processes) as pool:
        chosen, tunings = _tune(campaign, facts, pool, say)
        cells = [
            _Cell(
                campaign=campaign,
                traffic=campaign.traffic,
                policy=policy,
                parameters=chosen.get(policy, {}),
                facts=facts,
                seed=seed,
            )
            for policy in campaign.policies
            for seed in range(campaign.seeds)
        ]
        runs = []
        for found in pool.each(_play, cells):
            runs.append(found)
            say(
                f"played {found.policy}, seed {found.seed}: {found.energy.total / 3.6e6:.2f} kWh, "
                f"{100.0 * found.requests.attainment:.2f} % in SLO ({found.wall_seconds:.0f} s)"
            )
    spec = world.hardware(world.engine)
    return Report(
        title=campaign.title,
        trace={
            "requests": float(len(test_trace)),
            "hours": test_trace.span_seconds / 3600.0,
            "mean requests per second": len(test_trace) / test_trace.span_seconds,
            "peak requests per second (10 min)": float(_rates(test_trace).max()),
            "mean prompt tokens": float(test_trace.prompt_tokens.mean()),
            "mean output tokens": float(test_trace.output_tokens.mean()),
            "source": "made-up day" if campaign.traffic.path is None else campaign.traffic.path.name,
        },
        fleet={
            "model": world.model,
            "accelerator": world.accelerator,
            "GPUs": float(world.gpus),
            "GPUs per replica": float(spec.gpus),
            "static fleet (replicas)": float(facts.peak_replicas),
            "max_num_seqs": float(spec.max_num_seqs),
            "max_num_batched_tokens": float(spec.max_num_batched_tokens),
            "start-up seconds": world.lifecycle.startup_seconds,
            "router": world.router,
        },
        ttft_target_seconds=world.targets.ttft_seconds,
        tpot_target_seconds=world.targets.tpot_seconds,
        goal=world.slo.min_attainment,
        tuned_on=_describe(campaign.tuning),
        tunings=tunings,
        runs=tuple(runs),
        warnings=tuple(f"traffic: {text}" for text in (*test_trace.repairs, *tuning_trace.repairs)),
        settings={
            "scrape interval (s)": world.scrape.interval_seconds,
            "scrape delay (s)": world.scrape.delay_seconds,
            "lost pages": world.scrape.lost,
            "planner's tick (s)": campaign.tick_seconds,
            "replays per pass": float(campaign.replays_per_pass),
            "failures per day": world.failures_per_day,
            "true step times over believed": world.time_factor,
            "true watts over believed": world.power_factor,
            **campaign.settings,
        },
    )


def _describe(traffic: Traffic) -> str:
    name = "made-up day" if traffic.path is None else traffic.path.name
    end = "the end" if traffic.end_hours is None else f"{traffic.end_hours:g}"
    return f"{name}, hours {traffic.begin_hours:g} to {end}"


def _rates(trace: Any) -> Any:
    count = max(1, math.floor(trace.span_seconds / _WINDOW_SECONDS))
    width = min(_WINDOW_SECONDS, trace.span_seconds)
    return np.histogram(trace.times_seconds, np.arange(count + 1) * width)[0] / width


def _facts(campaign: Campaign, trace: Any, say: Callable[[str], None]) -> Facts:
    world = campaign.world
    spec = world.hardware(world.engine)
    believed = hardware.replica_hardware(model=world.model, accelerator=world.accelerator, engine=world.engine)
    d0, _, dkv, dt, _ = believed.levels[-1].seconds
    peak = campaign.peak_replicas
    if peak is None:
        busiest = trace.busiest(SIZING_SECONDS) if trace.span_seconds > SIZING_SECONDS else trace

        def enough(replicas: int) -> bool:
            fixed = _fixed(replicas)
            found = play(world, busiest, fixed, start_replicas=replicas).requests.attainment
            say(f"sizing: {replicas} replicas hold {100.0 * found:.2f} % on the busiest hour of the tuning traffic")
            return found >= world.slo.min_attainment

        peak = tuning.smallest(enough, guess=4, most=world.most_replicas)
        if peak is None:
            raise CampaignError(
                f"even {world.most_replicas} replicas do not reach {world.slo.min_attainment:.1%} on the busiest hour "
                "of the tuning traffic: lower --scale, give more GPUs, or a looser SLO"
            )
    rates = _rates(trace)
    return Facts(
        peak_replicas=peak,
        most_replicas=world.most_replicas,
        p95_share=float(np.percentile(rates, 95) / rates.max()),
        server=mean_chain.Server(
            alpha_seconds=d0,
            beta_seconds_per_token=dt,
            gamma_seconds_per_kv_token=dkv,
            prompt_tokens=float(trace.prompt_tokens.mean()),
            output_tokens=max(2.0, float(trace.output_tokens.mean())),
            max_num_seqs=spec.max_num_seqs,
            max_queue=_QUEUE_PER_SLOT * spec.max_num_seqs,
        ),
        targets=wva.Targets(ttft_seconds=world.targets.ttft_seconds, itl_seconds=world.targets.tpot_seconds),
        default_watts=spec.card.tdp_watts,
        lowest_watts=spec.card.minimum_cap_watts,
        highest_mhz=spec.card.maximum_clock_mhz,
        lowest_mhz=spec.card.minimum_clock_mhz,
    )


def _fixed(replicas: int) -> MakePolicy:
    return lambda _deployment, _pipeline: Fixed(name="static-peak", replicas=replicas)


def _tune(
    campaign: Campaign, facts: Facts, pool: "_Pool", say: Callable[[str], None]
) -> tuple[dict[str, dict[str, float]], tuple[Tuning, ...]]:
    cells = [
        _Cell(campaign=campaign, traffic=campaign.tuning, policy=policy, parameters={}, facts=facts, seed=0)
        for policy in campaign.policies
        if policy in RIVALS and RIVALS[policy].grid(facts)
    ]
    chosen: dict[str, dict[str, float]] = {}
    notes = []
    for cell, best in zip(cells, pool.each(_search, cells), strict=True):
        for trial in best.trials:
            say(
                f"tuning {cell.policy} {_words(trial.parameters)}: {trial.energy_joules / 3.6e6:.2f} kWh, "
                f"{100.0 * trial.attainment:.2f} % in SLO"
            )
        chosen[cell.policy] = dict(best.parameters)
        notes.append(Tuning(policy=cell.policy, parameters=dict(best.parameters), met=best.met, tried=len(best.trials)))
    return chosen, tuple(notes)


def _search(cell: _Cell) -> tuning.Tuned:
    """The whole search of one policy, in one process."""

    def evaluate(parameters: Parameters) -> tuning.Trial:
        found = _play(replace(cell, parameters=dict(parameters)))
        return tuning.Trial(
            parameters=parameters, energy_joules=found.energy.total, attainment=found.requests.attainment
        )

    rival = RIVALS[cell.policy]
    goal = cell.campaign.world.slo.min_attainment
    return tuning.search(rival.grid(cell.facts), evaluate, goal=goal, ordered=rival.ordered)


def _words(parameters: Parameters) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in parameters.items())


def _play(cell: _Cell) -> Run:
    campaign = cell.campaign
    return play(
        campaign.world,
        cell.traffic.load(seed=cell.seed),
        _make(cell),
        start_replicas=cell.facts.peak_replicas,
        seed=cell.seed,
        parameters=cell.parameters,
    )


def _make(cell: _Cell) -> MakePolicy:
    campaign, policy = cell.campaign, cell.policy
    if policy in RIVALS:
        rival = RIVALS[policy].build(cell.facts, cell.parameters)
        return lambda _deployment, _pipeline: rival
    spec = campaign.world.hardware(campaign.world.engine)
    highest = cell.facts.highest_mhz
    options = PlannerOptions(
        name=policy,
        clock_mhz=None if policy == "wattkeeper-replicas" else (round(_LOWEST_CLOCK * highest), highest),
        token_budgets=tuple(each for each in campaign.token_budgets if each >= spec.max_num_seqs)
        if policy == "wattkeeper"
        else (),
        tick_seconds=campaign.tick_seconds,
        replays_per_pass=campaign.replays_per_pass,
    )
    return lambda deployment, pipeline: Planner(campaign.world, options, deployment, pipeline)


class _Pool:
    """Cells here, or on several processes; answers in the order of the cells."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "_Pool":
        if self._processes > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._processes, mp_context=context)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[_Cell], _Answer], cells: Sequence[_Cell]) -> Iterable[_Answer]:
        """In order."""
        return map(work, cells) if self._pool is None else self._pool.map(work, cells)
