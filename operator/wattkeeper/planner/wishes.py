"""Which replays would help the next plan: of the cheapest candidates that wait for one, and of what is in place."""

from collections.abc import Iterator

from wattkeeper.domain.plan import Target
from wattkeeper.domain.replay import ReplayWish
from wattkeeper.planner.evidence import Standing, grid_rate, setting_of
from wattkeeper.planner.holds import rollout_blocked
from wattkeeper.planner.scored import Scored, Search
from wattkeeper.planner.sizing import Row, full_power_row
from wattkeeper.planner.space import Power


def cheaper(found: Search, chosen: Scored) -> Scored | None:
    """The cheapest candidate that is worth the move and waits for a replay; else the cheapest whose replay is short."""
    waiting = sorted(_held(found, chosen.watts), key=lambda item: item.score)
    unknown = (item for item in waiting if item.judged.standing is Standing.UNKNOWN)
    return next(unknown, waiting[0] if waiting else None)


def wishes(found: Search, target: Target) -> tuple[ReplayWish, ...]:
    """Replays that the next plan would like to see, given the target that was chosen now; none without the stage."""
    case = found.case
    if found.evidence is None:
        return ()
    chosen = row_of(found, target)
    watts = next((item.watts for item in found.scored if item.row == chosen), None)
    settings = case.settings
    held = [item for item in _held(found, watts) if item.judged.standing is Standing.UNKNOWN]
    held = sorted(held, key=lambda item: item.score)[: settings.replay_candidates]
    asked: dict[tuple[Row, float], ReplayWish] = {}
    for item in held:
        for need in found.evidence.unanswered(item.row):
            asked.setdefault((need.row, need.requests_per_second), _wish(found, need.row, need.requests_per_second))
    in_place = Row(replicas=case.space.current.replicas, power=case.space.current_power)
    age = found.evidence.age_seconds(in_place)
    known = found.evidence.judge(in_place).standing is not Standing.UNKNOWN
    if not known if age is None else age >= settings.replay_refresh_seconds:
        rate = case.workload.requests_per_second
        asked.setdefault((in_place, rate), _wish(found, in_place, rate))
    return tuple(sorted(asked.values(), key=_order))


def row_of(found: Search, target: Target) -> Row:
    """The row of a target; its engine is one of the space's."""
    engines = [engine.settings for engine in found.case.space.engines]
    return Row(
        replicas=target.replicas,
        power=Power(cap_watts=target.power_cap_watts, clock_mhz=target.clock_mhz),
        engine=engines.index(target.engine) if target.engine in engines else 0,
    )


def _held(found: Search, chosen_watts: float | None) -> Iterator[Scored]:
    """Candidates that only a replay holds back and that would be worth the move."""
    settings = found.case.settings
    for item in found.scored:
        if not item.held:
            continue
        gain = settings.rollout_gain_ratio if item.row.engine else settings.hysteresis_ratio
        if item.row.engine and rollout_blocked(found):
            continue
        no_choice = item.row.engine != 0 and 0 not in found.floors
        if (
            chosen_watts is None
            or no_choice
            or found.case.request.observation.idle
            or item.score <= chosen_watts * (1.0 - gain)
        ):
            yield item


def _wish(found: Search, row: Row, rate: float) -> ReplayWish:
    case, evidence = found.case, found.evidence
    return ReplayWish(
        setting=setting_of(case, row),
        requests_per_second=grid_rate(rate, case.settings.replay_rate_step_ratio),
        slack=_slack(found, row),
        evidence_age_seconds=None if evidence is None else evidence.age_seconds(row),
    )


def _slack(found: Search, row: Row) -> float:
    """Least relative distance to what the analytic check allows; negative where it is exceeded."""
    case, ledger = found.case, found.ledger
    if ledger.unknown([row]):
        row = full_power_row(case, row.replicas, engine=row.engine)
        ledger.add([row])
    figures, slo = ledger.figures([row])[0], case.request.slo
    grow = 1.0 + case.margin
    distances = [
        goal.seconds / (value * grow) - 1.0 if value > 0 else float("inf")
        for goal, value in ((slo.ttft, figures.ttft_upper_seconds), (slo.tpot, figures.tpot_upper_seconds))
        if goal is not None
    ]
    return min([*distances, case.ceiling / figures.utilisation - 1.0 if figures.utilisation > 0 else float("inf")])


def _order(wish: ReplayWish) -> tuple[float, float]:
    age = float("inf") if wish.evidence_age_seconds is None else wish.evidence_age_seconds
    return wish.slack, -age
