"""Evaluation of the latency model: simulate the grid, ask every method, keep all answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from wattkeeper.evaluation import baselines, cache, grid, methods, operator_replay, replayed, score, traffic
from wattkeeper.evaluation.grid import Grid
from wattkeeper.evaluation.methods import Latencies, Method
from wattkeeper.evaluation.runs import Run

MODEL = "latency model"
UPPER = "latency model, upper"
DECIDES = UPPER if methods.HAS_UPPER else MODEL
"""What a candidate is accepted by without a replay."""
FRESH = "replay, fresh arrivals"
STAGE, STAGE_UPPER = "replay stage", "replay stage, upper"
"""`queueing.replay` as the operator runs it, told of counts per scrape in the preceding half of the path."""
DECIDES_FRESH = f"{DECIDES} and {FRESH}"
DECIDES_STAGE = f"{DECIDES} and {STAGE_UPPER}"
BASELINES: dict[str, Method] = {
    "M/M/1 mean": baselines.mm1_mean,
    "M/M/1 percentile": baselines.mm1,
    "M/M/c mean": baselines.mmc_mean,
    "M/M/c percentile": baselines.mmc,
    "WVA mean": baselines.wva,
    "WVA x fitted factor": baselines.scaled(baselines.wva),
}

PATH = "the path itself, all windows"
SCRAPED = "the path itself, windows of 5 s and longer"
HALF = "its first half, all windows"
HALF_SCRAPED = "its first half, windows of 5 s and longer"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one evaluation."""

    data: Path | None
    """Folder of recorded traffic; None: synthetic lengths and no recorded arrivals."""
    points: int = grid.POINTS
    requests: int = grid.REQUESTS
    seed: int = 0
    cache: Path | None = None
    processes: int = 1
    replay: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Runs as several observers see them, and what every method says of them."""

    settings: Settings
    grid: Grid
    views: dict[str, list[Run]]
    """Rate and dispersion that the methods are given, by name; all views have the same runs in the same order."""
    methods: dict[str, Method]
    answers: dict[tuple[str, str, float], Latencies] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        """With everything known."""
        return self.views[PATH]

    @property
    def summary(self) -> str:
        """What was run, in a few sentences."""
        runs, asked = self.runs, self.settings
        if asked.data is None:
            source = "Lengths are synthetic and no arrivals are recorded, because no data folder was given"
        else:
            source = "Lengths and some arrivals are recorded ones"
        preempting = sum(run.preempted_share > score.PREEMPTING for run in runs)
        planned = int((score.loads(runs) <= score.PLANNED_LOAD).sum())
        return (
            f"{len(runs)} operating points (seed {asked.seed}) of at most {asked.requests:,} requests, "
            f"{len(self.grid.points) - len(runs)} more cannot run; {planned} have a load of {score.PLANNED_LOAD} or "
            f"less, {preempting} preempt. {source}."
        )

    def latencies(self, view: str, method: str, percentile: float) -> Latencies:
        """What a method says of all runs of a view; asked once."""
        question = view, method, percentile
        if question not in self.answers:
            self.answers[question] = self.methods[method](self.views[view], percentile)
        return self.answers[question]

    def truth(self, view: str, percentile: float) -> Latencies:
        """What the stepper says of them."""
        return methods.truth(self.views[view], percentile)


Progress = Callable[[str, int], Callable[[int], None]]
"""Begins a part of the work, with its name and size; the answer is told of every piece that is done."""


def evaluate(settings: Settings, *, progress: Progress) -> Evaluation:
    """Simulate and ask. Raises DataFileError or TraceError where the data folder lacks a file."""
    source = traffic.synthetic(seed=settings.seed) if settings.data is None else traffic.recorded(settings.data)
    points = grid.design(source, points=settings.points, seed=settings.seed, requests=settings.requests)
    runs = cache.simulated(
        points,
        folder=settings.cache,
        processes=settings.processes,
        done=progress("simulating the grid", len(points.points)),
    )
    return of(runs, points, settings, progress=progress)


def of(runs: list[Run], points: Grid, settings: Settings, *, progress: Progress) -> Evaluation:
    """Ask every method about these runs."""
    asked: dict[str, Method] = {MODEL: methods.model}
    if methods.HAS_UPPER:
        asked[UPPER] = methods.model_upper
    half = methods.first_half(runs, points)
    half_scraped = methods.scraped(half)
    if settings.replay:
        how = {"processes": settings.processes}
        asked[FRESH] = replayed.replays(runs, points, done=progress(FRESH, len(runs)), **how)
        asked[STAGE], asked[STAGE_UPPER] = operator_replay.replays(
            half_scraped, points, percentile=methods.HALVES_PERCENTILE, done=progress(STAGE, len(runs)), **how
        )
        asked[DECIDES_FRESH] = replayed.worse(asked[DECIDES], asked[FRESH])
        asked[DECIDES_STAGE] = replayed.worse(asked[DECIDES], asked[STAGE_UPPER])
    return Evaluation(
        settings=settings,
        grid=points,
        views={
            PATH: runs,
            SCRAPED: methods.scraped(runs),
            HALF: half,
            HALF_SCRAPED: half_scraped,
        },
        methods=asked | BASELINES,
    )
