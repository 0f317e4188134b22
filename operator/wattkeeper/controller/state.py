"""What the loop keeps of a service between two ticks.

All of it can be rebuilt: from the object's status, the node power caps and the target; what cannot (the rate history)
only makes the next decisions more careful.
"""

from dataclasses import dataclass, field

from wattkeeper.api.service_status import EngineStatus, HistoryEntry, InferenceServiceStatus, PlanStatus
from wattkeeper.controller import learned
from wattkeeper.controller.caution import Caution
from wattkeeper.controller.clock import Clock, from_rfc3339
from wattkeeper.controller.learning import Learning
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.plan import Plan
from wattkeeper.domain.workload import Workload
from wattkeeper.energy.online import OnlineCorrection
from wattkeeper.energy.sensor import Sensor
from wattkeeper.forecast.rates import ForecastSettings, RateHistory
from wattkeeper.planner.types import Barren, PlanMemory
from wattkeeper.telemetry.dispersion import DispersionEstimator
from wattkeeper.telemetry.spread import LoadSpread

HISTORY_LENGTH = 10

Decision = tuple[int | None, float | None, float | None, EngineStatus]
"""Replicas, cap in watts, clock in MHz, arguments."""


@dataclass(kw_only=True)
class Savings:
    """Energy account since `since`, in joules of decision time."""

    since: str = ""
    measured_joules: float = 0.0
    counterfactual_joules: float = 0.0
    counterfactual_low_joules: float = 0.0
    counterfactual_high_joules: float = 0.0


@dataclass(kw_only=True)
class ServiceState:
    """Working memory of one service. Times are decision time in seconds."""

    rates: RateHistory
    dispersion: DispersionEstimator
    correction: OnlineCorrection
    learning: Learning
    sensor: Sensor = field(default_factory=Sensor)
    caution: Caution = field(default_factory=Caution)
    seen_since: float
    """When this process first saw the service."""
    workload: Workload | None = None
    spread: LoadSpread = field(default_factory=LoadSpread)
    barren: Barren | None = None
    """What was seen of replicas without work."""
    snapshot_seen: float = 0.0
    power_seen: float = 0.0
    """Time of the last snapshot whose watts were looked at."""
    power_learnt: float | None = None
    """Calibrated over plain predicted watts of what is in place; None until something was predicted."""
    accounted_until: float | None = None
    latency_margin: float = 0.0
    plan: Plan | None = None
    decided: Decision | None = None
    """What `decided_at` speaks of."""
    decided_at: str = ""
    scaling_held: bool = False
    """True where the last decision's change of replicas waits for another actor or for a roll-out."""
    engine_diff: str | None = None
    engine_looked: float | None = None
    """When new engine arguments were last looked at."""
    last_scale_up: float | None = None
    last_scale_down: float | None = None
    last_rollout: float | None = None
    last_cap_move: float | None = None
    last_guard: float | None = None
    cap_refusal: tuple[float, str] | None = None
    """Until when no limit is asked for because cards refused one, and which."""
    rolled_back: str | None = None
    """Why the last roll-out was taken back."""
    bad_engines: list[EngineChange] = field(default_factory=list)
    history: list[HistoryEntry] = field(default_factory=list)
    savings: Savings = field(default_factory=Savings)
    written: InferenceServiceStatus | None = None
    written_at: float = 0.0
    """Wall time of the last write of status."""

    def memory(self) -> PlanMemory:
        """What the planner must know of the past."""
        return PlanMemory(
            last_scale_down_seconds=self.last_scale_down,
            last_scale_up_seconds=self.last_scale_up,
            last_rollout_seconds=self.last_rollout,
            last_cap_seconds=self.last_cap_move,
            last_guard_seconds=self.last_guard,
            barren=self.barren,
        )

    def remember_bad(self, change: EngineChange, why: str) -> None:
        """Arguments that must not be tried again."""
        if change not in self.bad_engines:
            self.bad_engines = [*self.bad_engines, change]
        self.rolled_back = f"{why}; the arguments went back, and these are not tried again"

    def remember(self, entry: HistoryEntry) -> None:
        """Add a decision; the newest come first, and a repeated one only updates its time."""
        if self.history and (self.history[0].change, self.history[0].reason) == (entry.change, entry.reason):
            self.history[0] = entry
        else:
            self.history = [entry, *self.history][:HISTORY_LENGTH]


def decision(plan: PlanStatus) -> Decision:
    """What a plan decides, without its reasons."""
    return plan.replicas, plan.power_cap_watts, plan.clock_mhz, plan.engine


def restore(
    status: InferenceServiceStatus, *, clock: Clock, forecast: ForecastSettings, seed: str = ""
) -> ServiceState:
    """Working memory from what the object's status kept.

    A restart never shortens a waiting time: the forecast has no history then, and without one no replica goes.
    `seed` spreads work of the fleet over time.
    """

    def time(text: str | None) -> float | None:
        wall = from_rfc3339(text)
        return None if wall is None else clock.decision_time(wall)

    memory, savings = status.memory, status.savings
    half_width = 0.0
    if savings.percent is not None and savings.percent_high is not None:
        half_width = (savings.percent_high - savings.percent) / 100
    counterfactual = savings.counterfactual_kwh * 3.6e6
    return ServiceState(
        rates=RateHistory(forecast),
        dispersion=DispersionEstimator(),
        seen_since=clock.now(),
        correction=OnlineCorrection.from_dict(memory.correction.model_dump() if memory.correction else None),
        learning=Learning(seed=seed, speed_up=clock.speed_up, learned=learned.from_status(status.profile)),
        last_scale_up=time(memory.last_scale_up),
        last_scale_down=time(memory.last_scale_down),
        last_rollout=time(memory.last_rollout),
        rolled_back=memory.rolled_back,
        bad_engines=[EngineChange(**entry.model_dump(exclude_none=True)) for entry in memory.bad_engines],
        history=list(status.history),
        savings=Savings(
            since=savings.since,
            measured_joules=savings.energy_kwh * 3.6e6,
            counterfactual_joules=counterfactual,
            counterfactual_low_joules=counterfactual * (1 - half_width),
            counterfactual_high_joules=counterfactual * (1 + half_width),
        ),
        decided=decision(status.plan) if status.plan.decided_at else None,
        decided_at=status.plan.decided_at,
        written=status,
    )
