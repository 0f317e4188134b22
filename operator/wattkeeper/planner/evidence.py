"""Evidence from replays: what it says of a candidate, and which replays are worth asking for.

More replicas, higher limits and a lower rate never hurt, so a replay speaks for every candidate of the same engine
arguments that has at least its replicas and limits at most at its rate (it meets the SLO), and against every one that
has at most those at no lower a rate (it misses). The rate of a replay is rounded up to a grid, and one made for the
grid step of the planned rate counts against what is planned too.

A candidate meets the SLO where the bound on a replayed percentile (sampling error included) times (1 + margin) is
within its target. It misses where the percentile itself, with what the margin has beyond its base, is not. Between the
two it is short: what is in place may stay there, but nothing moves there.
"""

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from wattkeeper.domain.plan import Binding, LatencyTarget
from wattkeeper.domain.replay import Replayed, ReplaySetting, ReplayStatus
from wattkeeper.physics import step
from wattkeeper.planner.sizing import Case, Row, full_power_row
from wattkeeper.planner.space import Power


class Standing(enum.Enum):
    """What replays say of a candidate, from the best to the worst."""

    MEETS = "Meets"
    UNKNOWN = "Awaited"
    SHORT = "Short"
    MISSES = "Misses"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What replays say of a candidate, and the one that says it."""

    standing: Standing
    binding: Binding = Binding.NONE
    """The target that is not met."""
    replayed: Replayed | None = None


UNKNOWN = Judged(standing=Standing.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Need:
    """A replay that a candidate must pass: itself or, for a stabilised rate, its replicas at full power."""

    row: Row
    requests_per_second: float
    planned: bool
    """True for the planned rate."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """A replay that still holds, with what is compared again and again."""

    replayed: Replayed
    replicas: int
    cap_watts: float
    clock_mhz: float
    requests_per_second: float
    meets: bool
    misses: Binding
    short: Binding


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known from replays of one service at the time of its plan."""

    case: Case
    by_engine: dict[int, tuple[_Known, ...]] = field(default_factory=dict)
    reach: float
    """The grid step of the planned rate: a replay at up to this rate counts against what is planned."""
    stabilised_reach: float

    @staticmethod
    def of(case: Case) -> "Evidence | None":
        """None where no replay stage is configured. Replays that are too old, or of other requests, are left out."""
        replays = case.request.replays
        if replays is None:
            return None
        pace = step.reference_seconds(case.request.profile.iteration)
        fresh = [item for item in replays.replayed if _holds(item, case, pace)]
        by_engine = {}
        for index in range(len(case.space.engines)) if fresh else ():
            known = tuple(_known(item, case) for item in fresh if _same_engine(item.setting, case, index))
            if known:
                by_engine[index] = known
        ratio = case.settings.replay_rate_step_ratio
        return Evidence(
            case=case,
            by_engine=by_engine,
            reach=grid_rate(case.workload.requests_per_second, ratio) * _ROUNDING,
            stabilised_reach=grid_rate(case.stabilised_rate, ratio) * _ROUNDING,
        )

    def proved(self) -> Iterator[tuple[Row, float]]:
        """Settings of the engine in place that replays showed to meet the SLO, each with the highest rate for it."""
        best: dict[Row, float] = {}
        for item in self.by_engine.get(0, ()):
            if item.meets:
                setting = item.replayed.setting
                power = Power(cap_watts=setting.power_cap_watts, clock_mhz=setting.clock_mhz)
                row = Row(replicas=setting.replicas, power=power)
                best[row] = max(best.get(row, 0.0), item.requests_per_second)
        yield from best.items()

    def accuses(self, engine: int) -> bool:
        """True where a replay of this engine misses the SLO, so that candidates with more capacity need a look too."""
        return any(item.misses is not Binding.NONE for item in self.by_engine.get(engine, ()))

    def judge(self, row: Row) -> Judged:
        """The worst of what its needs get."""
        known = self.by_engine.get(row.engine)
        if known is None:
            return UNKNOWN
        worst: Judged | None = None
        for need in self.needs(row):
            found = self._answer(need, known)
            if found.standing is Standing.MISSES and not need.planned:
                found = Judged(standing=Standing.SHORT, binding=found.binding, replayed=found.replayed)
            if worst is None or _ORDER[found.standing] > _ORDER[worst.standing]:
                worst = found
        return worst or UNKNOWN

    def needs(self, row: Row) -> Iterator[Need]:
        """Itself at the planned rate; where it has fewer replicas than now, those at the stabilised rate too."""
        case = self.case
        yield Need(row=row, requests_per_second=case.workload.requests_per_second, planned=True)
        if row.replicas < case.space.current.replicas and case.stabilised_load > 1.0:
            full = full_power_row(case, row.replicas, engine=row.engine)
            yield Need(row=full, requests_per_second=case.stabilised_rate, planned=False)

    def unanswered(self, row: Row) -> list[Need]:
        """The needs of a row about which nothing is known."""
        known = self.by_engine.get(row.engine, ())
        return [need for need in self.needs(row) if self._answer(need, known).standing is Standing.UNKNOWN]

    def floor(self, engine: int) -> tuple[int, Binding]:
        """The most replicas that miss the SLO at full power and the planned rate, 0 where none does, and why."""
        full, rate = self.case.space.full_power, self.reach
        missing = [
            (item.replicas, item.misses)
            for item in self.by_engine.get(engine, ())
            if item.misses is not Binding.NONE and item.requests_per_second <= rate and _at_least(item, full)
        ]
        return max(missing, key=lambda found: found[0], default=(0, Binding.NONE))

    def age_seconds(self, row: Row) -> float | None:
        """Of the newest replay of this very setting at this rate or more; None where there is none."""
        watts, clock = _limits(self.case, row.power)
        rate = self.case.workload.requests_per_second
        times = [
            item.replayed.time_seconds
            for item in self.by_engine.get(row.engine, ())
            if (item.replicas, item.cap_watts, item.clock_mhz) == (row.replicas, watts, clock)
            and item.requests_per_second >= rate
        ]
        return self.case.request.now_seconds - max(times) if times else None

    def _answer(self, need: Need, known: Sequence[_Known]) -> Judged:
        rate, reach = need.requests_per_second, self.reach if need.planned else self.stabilised_reach
        watts, clock = _limits(self.case, need.row.power)
        replicas = need.row.replicas
        short = meets = None
        for item in known:
            if item.requests_per_second <= reach and (
                replicas <= item.replicas and watts <= item.cap_watts and clock <= item.clock_mhz
            ):
                if item.misses is not Binding.NONE:
                    return Judged(standing=Standing.MISSES, binding=item.misses, replayed=item.replayed)
                if item.short is not Binding.NONE:
                    short = item
            if (
                item.meets
                and item.requests_per_second >= rate
                and (replicas >= item.replicas and watts >= item.cap_watts and clock >= item.clock_mhz)
                and (meets is None or item.replayed.time_seconds > meets.replayed.time_seconds)
            ):
                meets = item
        if short is not None:
            return Judged(standing=Standing.SHORT, binding=short.short, replayed=short.replayed)
        return UNKNOWN if meets is None else Judged(standing=Standing.MEETS, replayed=meets.replayed)


_ROUNDING = 1.0 + 1e-9
_ORDER = {standing: place for place, standing in enumerate(Standing)}


def grid_rate(rate: float, step_ratio: float) -> float:
    """The rate rounded up to a geometric grid of this step, in requests per second."""
    width = math.log1p(step_ratio)
    return math.exp(width * math.ceil(math.log(rate) / width - 1e-9))


def setting_of(case: Case, row: Row) -> ReplaySetting:
    """What to replay for a row."""
    engine = case.space.engines[row.engine]
    return ReplaySetting(
        replicas=row.replicas,
        power_cap_watts=row.power.cap_watts,
        clock_mhz=row.power.clock_mhz,
        engine=engine.settings,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        kv_capacity_tokens=engine.kv_capacity_tokens,
    )


def needs_evidence(case: Case, row: Row) -> bool:
    """True for less capacity than in place: fewer replicas, a lower limit, or other engine arguments."""
    current = case.space.current
    return row.engine != 0 or row.replicas < current.replicas or row.power.deeper_than(case.space.current_power)


def _holds(item: Replayed, case: Case, pace_seconds: float) -> bool:
    """True where a replay is young enough, and of requests and of a replica like those of now."""
    slo, now = case.request.slo, case.request.now_seconds
    if not now - item.time_seconds <= case.settings.replay_max_age_seconds:
        return False
    for goal, percentile in ((slo.ttft, item.result.ttft_percentile), (slo.tpot, item.result.tpot_percentile)):
        if goal is not None and goal.percentile != percentile:
            return False
    allowed, workload = case.settings.replay_length_tolerance, case.workload
    lengths = ((workload.prompt.mean, item.prompt_tokens), (workload.output.mean, item.output_tokens))
    alike = all(abs(mean - then) <= allowed * then for mean, then in lengths)
    alike = alike and abs(pace_seconds - item.iteration_seconds) <= (
        case.settings.replay_pace_tolerance * item.iteration_seconds
    )
    return alike and abs(workload.prefix_hit_ratio - item.prefix_hit_ratio) <= allowed


def _known(item: Replayed, case: Case) -> _Known:
    slo, result = case.request.slo, item.result
    ttft = (Binding.TTFT, slo.ttft, result.ttft_seconds, result.ttft_upper_seconds)
    tpot = (Binding.TPOT, slo.tpot, result.tpot_seconds, result.tpot_upper_seconds)
    beyond = max(0.0, case.margin - case.settings.margin_base)
    done = result.status is ReplayStatus.DONE
    misses = next((name for name, goal, value, _ in (ttft, tpot) if _over(goal, value * (1.0 + beyond))), Binding.NONE)
    goals = (ttft, tpot) if done else ()
    short = next((name for name, goal, _, bound in goals if _over(goal, bound * (1.0 + case.margin))), misses)
    watts, clock = _limits(case, Power(cap_watts=item.setting.power_cap_watts, clock_mhz=item.setting.clock_mhz))
    return _Known(
        replayed=item,
        replicas=item.setting.replicas,
        cap_watts=watts,
        clock_mhz=clock,
        requests_per_second=item.requests_per_second,
        meets=done and short is Binding.NONE,
        misses=misses if done else Binding.NONE,
        short=short if done else Binding.EVIDENCE,
    )


def _over(goal: LatencyTarget | None, seconds: float) -> bool:
    return goal is not None and not seconds <= goal.seconds


def _same_engine(setting: ReplaySetting, case: Case, index: int) -> bool:
    engine = case.space.engines[index]
    return (
        setting.engine == engine.settings
        and setting.max_num_seqs == engine.max_num_seqs
        and setting.max_num_batched_tokens == engine.max_num_batched_tokens
        and math.isclose(setting.kv_capacity_tokens, engine.kv_capacity_tokens, rel_tol=1e-3)
    )


def _limits(case: Case, power: Power) -> tuple[float, float]:
    """Cap in watts and clock in MHz that hold: those that limit nothing are infinite."""
    gpu = case.request.profile.gpu
    watts = math.inf if power.cap_watts is None or power.cap_watts >= gpu.tdp_watts else power.cap_watts
    clock = math.inf if power.clock_mhz is None or power.clock_mhz >= gpu.max_clock_mhz else power.clock_mhz
    return watts, clock


def _at_least(item: _Known, power: Power) -> bool:
    """True where a replay's limits are not below these."""
    cap = math.inf if power.cap_watts is None else power.cap_watts
    clock = math.inf if power.clock_mhz is None else power.clock_mhz
    return item.cap_watts >= cap and item.clock_mhz >= clock
