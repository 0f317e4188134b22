"""The closed loop: what each decision of the operator said it would draw, and what its fleet drew then.

The operator runs unmodified in a replay. The watts of a plan are held against the joules that the service's GPUs then
draw in the simulated fleet, whose power model is not the operator's, for as long as the plan stands: up to
`WINDOW_SECONDS`, then it counts anew. What stood for less than `LEAST_SECONDS`, or while replicas were starting or
draining, is left out and counted. A plan's watts are those at the rate that it plans for, so that the error of the
forecast is in the score. Beside it stands persistence: the watts of the last window.
"""

from dataclasses import dataclass

import numpy as np

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import Plan
from wattkeeper.energy.held_out import HeldOut
from wattkeeper.replay.planner import PlannerPolicy, PlannerSetup
from wattkeeper.replay.play import Cell, Progress, play
from wattkeeper.rivals.types import Decision, Look
from wattkeeper.telemetry.collector import Collector
from wattkeeper.twin.deployment import Deployment, PodPhase

WINDOW_SECONDS = 300.0
"""Twenty ticks of the operator."""
LEAST_SECONDS = 60.0
"""Shorter spans say more about single requests than about a plan."""
_HOUR_SECONDS = 3600.0
DECIDED, PERSISTENCE = "as decided", "window before"


class EvaluationError(WattkeeperError):
    """Nothing can be said of the replay that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One decision and what followed."""

    begin_seconds: float
    seconds: float
    predicted_watts: float
    """Of all GPUs of the service at the planned rate."""
    low_watts: float
    high_watts: float
    """Ends of the 90 % interval that the decision came with."""
    measured_watts: float
    before_watts: float
    """Measured in the last window; NaN in the first one."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """All windows of one replay."""

    windows: tuple[Window, ...]
    left_out: int
    """Spans that were too short, or saw replicas come or go."""


class _Watched:
    """The operator as a policy, with a look at its plan and at the fleet's meter at every pass."""

    def __init__(self, operator: PlannerPolicy, deployment: Deployment) -> None:
        self.name, self.period_seconds = operator.name, operator.period_seconds
        self._operator, self._deployment = operator, deployment
        self._open: tuple[float, Plan, float] | None = None
        self._before_watts = np.nan
        self.windows: list[Window] = []
        self.left_out = 0

    def decide(self, look: Look) -> Decision:
        now = look.time_seconds
        if self._open is not None and not self._serves(self._open[1]):
            self._open, self.left_out = None, self.left_out + 1
        wanted = self._operator.decide(look)
        plan = self._operator.plan
        if self._open is not None:
            stands = plan is not None and plan.target == self._open[1].target
            if not stands or now - self._open[0] >= WINDOW_SECONDS:
                self._end(now)
        if self._open is None and plan is not None and plan.prediction is not None and self._serves(plan):
            self._open = (now, plan, self._deployment.service.energy_joules)
        return wanted

    def close(self) -> None:
        self._operator.close()

    def _end(self, now_seconds: float) -> None:
        if self._open is None:
            return
        (begin, plan, joules), self._open = self._open, None
        seconds = now_seconds - begin
        if plan.prediction is None or seconds < LEAST_SECONDS:
            self.left_out += 1
            return
        watts = (self._deployment.service.energy_joules - joules) / seconds
        low, high = plan.prediction.power_interval_watts
        self.windows.append(
            Window(
                begin_seconds=begin,
                seconds=seconds,
                predicted_watts=plan.prediction.power_watts,
                low_watts=low,
                high_watts=high,
                measured_watts=watts,
                before_watts=self._before_watts,
            )
        )
        self._before_watts = watts

    def _serves(self, plan: Plan) -> bool:
        phases = [view.phase for view in self._deployment.pods()]
        return phases.count(PodPhase.READY) == len(phases) == plan.target.replicas


def watch(cell: Cell, setup: PlannerSetup, *, progress: Progress | None = None) -> Watched:
    """One replay under the operator. Raises WattkeeperError as `replay.play.play` does."""
    made: list[_Watched] = []

    def make(deployment: Deployment, collector: Collector) -> _Watched:
        made.append(_Watched(PlannerPolicy(setup, deployment, collector), deployment))
        return made[0]

    play(cell, make, progress=progress)
    return Watched(windows=tuple(made[0].windows), left_out=made[0].left_out)


def held_out(found: Watched, *, data: str) -> HeldOut:
    """For the table of scores. Hours are the groups: windows near one another are not independent.

    Raises EvaluationError where no decision stood long enough.
    """
    windows = [window for window in found.windows if np.isfinite(window.before_watts)]
    if not windows:
        raise EvaluationError(f"{data}: no decision stood for {LEAST_SECONDS:g} s; take a longer part of the trace")
    hours = np.array([int(window.begin_seconds // _HOUR_SECONDS) for window in windows])
    return HeldOut(
        data=data,
        target="W of the service",
        split="decisions that stood",
        groups=hours.astype(np.str_),
        fold=hours,
        measured=np.array([window.measured_watts for window in windows]),
        predicted={
            DECIDED: np.array([window.predicted_watts for window in windows]),
            PERSISTENCE: np.array([window.before_watts for window in windows]),
        },
        interval={
            DECIDED: (
                np.array([window.low_watts for window in windows]),
                np.array([window.high_watts for window in windows]),
            )
        },
        notes=(f"{found.left_out} spans left out: shorter than {LEAST_SECONDS:g} s, or replicas came or went",),
    )
