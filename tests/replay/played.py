"""A small stage and traffic for tests that play."""

from collections.abc import Callable

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.plan import LatencyTarget, Slo
from wattkeeper.replay.play import Cell, play
from wattkeeper.replay.result import Run
from wattkeeper.replay.stage import MetricsPath, Stage
from wattkeeper.rivals.types import Decision, Look
from wattkeeper.traces import build
from wattkeeper.traces.trace import Trace
from wattkeeper.twin.deployment import Lifecycle

SLO = Slo(
    ttft=LatencyTarget(percentile=95.0, seconds=1.0),
    tpot=LatencyTarget(percentile=95.0, seconds=0.05),
    min_attainment=0.95,
)


def trace(*, rate: float = 4.0, minutes: float = 10.0, seed: int = 0) -> Trace:
    return build.build(f"poisson:rate={rate},for={60 * minutes:g}s,lengths=600~1/120~0.8,seed={seed}")


def stage(*, replicas: int = 2, gpus: int = 4, startup: float = 60.0, metrics: MetricsPath | None = None) -> Stage:
    return Stage(
        model="meta-llama/Llama-3.1-8B-Instruct",
        accelerator="nvidia-h100-sxm",
        engine=EngineSettings(max_num_seqs=256, max_num_batched_tokens=2048, max_model_len=16384),
        slo=SLO,
        gpus=gpus,
        gpus_per_node=2,
        replicas=replicas,
        lifecycle=Lifecycle(startup_seconds=startup),
        metrics=metrics or MetricsPath(),
    )


class Scripted:
    """Decides as a function says; keeps what it saw."""

    def __init__(self, decide: Callable[[Look], Decision], *, name: str = "scripted", period: float = 15.0) -> None:
        self.name, self.period_seconds = name, period
        self._decide = decide
        self.looks: list[Look] = []

    def decide(self, look: Look) -> Decision:
        self.looks.append(look)
        return self._decide(look)


def played(
    policy: Scripted, *, of: Trace | None = None, on: Stage | None = None, seed: int = 0, interval: float = 60.0
) -> Run:
    cell = Cell(
        trace=trace() if of is None else of,
        trace_name="test",
        stage=on or stage(),
        seed=seed,
        interval_seconds=interval,
    )
    return play(cell, lambda _deployment, _collector: policy)
