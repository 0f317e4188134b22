"""The decision rule: which of the scored candidates becomes the plan, what binds it, and what came second.

Rules, in this order. No feasible candidate: all capacity there is. A roll-out only where it beats everything that the
arguments in place could reach by more than `rollout_gain_ratio`, or where they can reach nothing; its replicas never go
down in the same plan. What is in place stays unless the gain, price of the move included, clears the hysteresis. Idle:
the fewest replicas, then the deepest limits that a first request still bears.
"""

import math
from dataclasses import dataclass

from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.plan import Binding, Plan, PlanReason, Prediction, RunnerUp, Target
from wattkeeper.planner import dwell, grid, holds, sizing, wishes, words
from wattkeeper.planner import search as searching
from wattkeeper.planner.evidence import Standing
from wattkeeper.planner.scored import Scored, Search
from wattkeeper.planner.sizing import Case, Row
from wattkeeper.planner.space import Power


@dataclass(frozen=True, kw_only=True)
class _Choice:
    item: Scored
    reason: PlanReason
    binding: Binding
    message: str
    replicas: int
    power: Power | None = None
    """None: the item's own, once it need not wait."""


def choose(found: Search) -> Plan:
    """The plan for one searched service."""
    case = found.case
    in_place = _in_place(found)
    open_items = [item for item in found.scored if item.open and item.row.engine == 0]
    moved = _rollout(found)
    if moved is not None:
        choice = _take_rollout(found, moved, in_place)
    elif 0 not in found.floors:
        return infeasible(found)
    elif case.request.observation.idle:
        best = min(open_items, key=lambda item: (item.row.replicas, grid.depth(case, item.row.power), item.score))
        choice = _take_idle(found, best)
    else:
        choice = _take_cheapest(found, open_items, in_place)
    return _plan(found, choice)


def _in_place(found: Search) -> Scored:
    now = found.case.space.current
    row = Row(replicas=now.replicas, power=found.case.space.current_power)
    return next(item for item in found.scored if item.row == row)


def _rollout(found: Search) -> Scored | None:
    """The roll-out worth its price, if any."""
    options = [item for item in found.scored if item.row.engine and item.open]
    if not options or holds.rollout_blocked(found):
        return None
    best = min(options, key=lambda item: item.score)
    if 0 not in found.floors:
        return best
    reachable = [item.watts for item in found.scored if item.row.engine == 0 and item.violation is Binding.NONE]
    if best.score < min(reachable) * (1 - found.case.settings.rollout_gain_ratio):
        return best
    return None


def _take_rollout(found: Search, best: Scored, in_place: Scored) -> _Choice:
    case = found.case
    engine = case.space.engines[best.row.engine]
    replicas = max(best.row.replicas, case.space.current.replicas)
    if 0 not in found.floors:
        why = "no other target meets the SLO"
    else:
        why = f"{words.watts(best.watts)} once settled at {words.replicas(best.row.replicas)}"
        if in_place.violation is Binding.NONE:
            why += f" instead of {words.watts(in_place.watts)}"
    return _Choice(
        item=best,
        reason=PlanReason.LEAST_ENERGY,
        binding=Binding.NONE,
        message=f"Rolling out {words.change(engine.change)}, full power meanwhile: {why}; {_at(case, best)}.",
        replicas=replicas,
        power=case.space.full_power,
    )


def _take_idle(found: Search, best: Scored) -> _Choice:
    held = _held_replicas(found, best)
    message = f"Idle: {_option(found, best)}, {words.watts(best.watts)} expected{f'; {held}' if held else ''}."
    cheaper = None if held else wishes.cheaper(found, best)
    if cheaper is not None:
        message = f"{message[:-1]}; {_option(found, cheaper)} at {words.watts(cheaper.watts)}: {cheaper.blocked}."
    return _Choice(
        item=best,
        reason=PlanReason.IDLE,
        binding=_binding(found, best) if cheaper is None else Binding.REPLAY,
        message=message,
        replicas=best.row.replicas,
    )


def _take_cheapest(found: Search, open_items: list[Scored], in_place: Scored) -> _Choice:
    case = found.case
    wanted = best = min(open_items, key=lambda item: item.score)
    against = dwell.reference(in_place, open_items)
    if against is not None:
        best = min(
            (item for item in open_items if not dwell.too_soon(found, against, item)), key=lambda item: item.score
        )
    limit = case.settings.hysteresis_ratio
    held = _held_replicas(found, best)
    binding = _binding(found, best)
    staying = best.row.replicas == case.space.current.replicas
    reason = PlanReason.STABILISING if held and staying else PlanReason.LEAST_ENERGY
    if not in_place.open or in_place.waiting:
        why = in_place.waiting or searching.rejection(case, in_place)
        message = f"Moving to {_option(found, best)}, {words.watts(best.watts)}: in place, {why}; {_at(case, best)}."
        item = best
    elif best is in_place:
        item = in_place
        message = f"Keeping {_option(found, best)}: least energy, {words.watts(best.watts)}; {_at(case, best)}."
    elif best.score > in_place.watts * (1 - limit):
        item, binding = in_place, Binding.HYSTERESIS
        reason = PlanReason.STABILISING if held and staying else PlanReason.KEEP
        message = (
            f"Keeping {_option(found, in_place)}, {words.watts(in_place.watts)}: {_option(found, best)} would gain "
            f"{max(0.0, 1 - best.score / in_place.watts):.1%}, below {limit:.0%}; {_at(case, in_place)}."
        )
    else:
        item = best
        message = (
            f"Moving to {_option(found, best)}: {words.watts(best.watts)} instead of {words.watts(in_place.watts)}; "
            f"{_at(case, best)}."
        )
    if against is not None and best is not wanted and wanted.score <= item.watts * (1 - limit):
        binding = Binding.HYSTERESIS
        waits = dwell.too_soon(found, against, wanted)
        message = f"{message[:-1]}; {_option(found, wanted)} at {words.watts(wanted.watts)} waits: {waits}."
    if held:
        binding = Binding.STABILISATION
        message = message[:-1] + f"; {held}."
    cheaper = wishes.cheaper(found, item)
    if cheaper is not None and not held:
        binding = Binding.REPLAY
        awaited = cheaper.judged.standing is Standing.UNKNOWN
        reason = PlanReason.AWAITING_REPLAY if awaited and item is in_place else reason
        message = f"{message[:-1]}; {_option(found, cheaper)} at {words.watts(cheaper.watts)}: {cheaper.blocked}."
    return _Choice(
        item=item,
        reason=reason,
        binding=binding,
        message=message,
        replicas=item.row.replicas,
    )


def _held_replicas(found: Search, best: Scored) -> str:
    """What holds back fewer replicas that would carry the planned rate; empty where nothing does."""
    case, least = found.case, found.required[0].replicas
    if least is None or least >= best.row.replicas:
        return ""
    timer = holds.scale_down_hold(case)
    if timer and found.floors[0] < best.row.replicas:
        return f"fewer replicas wait: {timer}"
    if found.floors[0] > least and found.floors[0] >= best.row.replicas:
        recent = case.stabilised_rate
        return f"fewer replicas wait: they would not carry the recent {recent:.3g} req/s"
    return ""


def _binding(found: Search, best: Scored) -> Binding:
    """What stops the next cheaper candidate: the next deeper limit first, then one replica fewer."""
    case = found.case
    deeper = [
        item
        for item in found.scored
        if item.row.engine == best.row.engine
        and item.row.replicas == best.row.replicas
        and item.row.power.deeper_than(best.row.power)
        and not best.row.power.deeper_than(item.row.power)
    ]
    if deeper:
        closest = max(deeper, key=lambda item: grid.depth(case, item.row.power))
        if closest.violation is not Binding.NONE:
            return closest.violation
        if closest.waiting and not best.waiting:
            return Binding.STABILISATION
    required = found.required[best.row.engine]
    if best.row.replicas == required.replicas:
        if required.below is not Binding.MIN_REPLICAS:
            return required.below
        has_power = bool(case.space.caps_watts or case.space.clocks_mhz)
        return Binding.POWER_FLOOR if has_power and not deeper else Binding.MIN_REPLICAS
    if _held_replicas(found, best):
        return Binding.STABILISATION
    other_engine = [item for item in found.scored if item.row.engine and item.violation is Binding.NONE]
    return Binding.ROLLOUT_COST if any(item.watts < best.watts for item in other_engine) else Binding.NONE


def infeasible(found: Search) -> Plan:
    """Nothing meets the SLO: all capacity there is, and what a person could do about it."""
    case, least = found.case, found.required[0]
    slo, rate = case.request.slo, case.workload.requests_per_second
    bounds = f"even with {words.replicas(case.space.high)} at {words.power(case.space.full_power)}"
    more = "add GPUs" if case.space.gpu_bound else "raise levers.replicas.max"
    if case.space.router_bound:
        more = "have the router spread its load"
    most = next(item for item in found.scored if item.row == sizing.full_power_row(case, case.space.high))
    if most.judged.standing is Standing.MISSES:
        text = f"{rate:.3g} req/s cannot be served {bounds}: {searching.rejection(case, most)}"
        return _all_capacity(found, f"{text}; {more}, relax the target, or allow other engine arguments")
    goal, value = {
        Binding.TTFT: (slo.ttft, most.figures.ttft_upper_seconds),
        Binding.TPOT: (slo.tpot, most.figures.tpot_upper_seconds),
    }.get(least.below, (None, 0.0))
    if goal is not None:
        text = (
            f"{least.below.value.upper()} {words.seconds(goal.seconds)} at p{goal.percentile:g} cannot be met at "
            f"{rate:.3g} req/s {bounds}: at most {words.seconds(value)} predicted, {case.margin:.0%} margin on top"
        )
        advice = f"{more}, relax the target, or allow other engine arguments"
        if found.hopeless:
            text += ", and too slow even without load"
            advice = "relax the target, allow other engine arguments, or use a faster accelerator"
    else:
        why = words.violation(
            least.below, slo, most.figures.ttft_upper_seconds, most.figures.tpot_upper_seconds, case.margin
        )
        load = f"{most.figures.utilisation:.0%} of capacity, ceiling {case.ceiling:.0%}"
        text = f"{rate:.3g} req/s cannot be served {bounds}: {why} ({load})"
        advice = f"{more} or send less traffic"
    other = next((case.space.engines[index] for index in found.floors if index), None)
    if other is not None:
        blocked = holds.rollout_blocked(found) or "its replay is awaited"
        text += f"; {words.change(other.change)} would do, but {blocked}"
    return _all_capacity(found, f"{text}; {advice}")


def _all_capacity(found: Search, message: str) -> Plan:
    case = found.case
    target = Target(
        replicas=case.space.high,
        power_cap_watts=case.space.full_power.cap_watts,
        clock_mhz=case.space.full_power.clock_mhz,
        engine=case.request.current.engine,
    )
    return Plan(
        target=target,
        engine_change=EngineChange(),
        reason=PlanReason.INFEASIBLE,
        message=f"{message}.",
        binding=found.required[0].below,
        runner_up=None,
        prediction=_prediction_of(found, target),
        planned_requests_per_second=case.workload.requests_per_second,
        feasible=False,
    )


def _plan(found: Search, choice: _Choice) -> Plan:
    case, item = found.case, choice.item
    engine = case.space.engines[item.row.engine]
    power, message = choice.power or item.row.power, choice.message
    if choice.power is None and item.waiting:
        power = _interim(found, item)
        message = f"{message[:-1]}; until then {words.power(power)}: {item.waiting}."
    target = Target(
        replicas=choice.replicas,
        power_cap_watts=power.cap_watts,
        clock_mhz=power.clock_mhz,
        engine=engine.settings,
    )
    return Plan(
        target=target,
        engine_change=engine.change,
        reason=choice.reason,
        message=message,
        binding=choice.binding,
        runner_up=_runner_up(found, item),
        prediction=_prediction_of(found, target),
        planned_requests_per_second=case.workload.requests_per_second,
        feasible=True,
    )


def _interim(found: Search, chosen: Scored) -> Power:
    """The least power that the chosen replica count may run at now; full power always may."""
    now = [
        item
        for item in found.scored
        if item.row.replicas == chosen.row.replicas
        and item.row.engine == chosen.row.engine
        and item.violation is Binding.NONE
        and not item.waiting
    ]
    return min(now, key=lambda item: item.watts).row.power if now else found.case.space.full_power


def _prediction_of(found: Search, target: Target) -> Prediction | None:
    """What the models expect of a target; None where it is not stable."""
    case = found.case
    power = Power(cap_watts=target.power_cap_watts, clock_mhz=target.clock_mhz)
    for item in found.scored:
        same = item.row.replicas == target.replicas and item.row.power == power
        if not same or case.space.engines[item.row.engine].settings != target.engine or not math.isfinite(item.watts):
            continue
        tokens = case.workload.requests_per_second * case.workload.output.mean
        return Prediction(
            power_watts=item.watts,
            power_interval_watts=(item.low_watts, item.high_watts),
            ttft_seconds=item.figures.ttft_seconds,
            tpot_seconds=item.figures.tpot_seconds,
            utilisation=item.figures.utilisation,
            joules_per_token=item.watts / tokens if tokens > 0 else None,
        )
    return None


def _runner_up(found: Search, chosen: Scored) -> RunnerUp | None:
    """The best feasible candidate with other replicas or another engine; else with other limits."""
    feasible = [item for item in found.scored if item.violation is Binding.NONE and item is not chosen]
    other = [
        item for item in feasible if (item.row.replicas, item.row.engine) != (chosen.row.replicas, chosen.row.engine)
    ]
    pool = other or feasible
    if not pool:
        return None
    second = min(pool, key=lambda item: item.score)
    case = found.case
    engine = case.space.engines[second.row.engine]
    target = Target(
        replicas=second.row.replicas,
        power_cap_watts=second.row.power.cap_watts,
        clock_mhz=second.row.power.clock_mhz,
        engine=engine.settings,
    )
    if second.blocked:
        why = second.blocked
    elif second.row.engine and not chosen.row.engine and second.score < chosen.watts:
        gain = 1 - second.score / chosen.watts
        blocked = holds.rollout_blocked(found)
        why = blocked or f"a gain of {gain:.1%} does not pay for a roll-out ({case.settings.rollout_gain_ratio:.0%})"
    elif second.score < chosen.score:
        why = f"a gain of {1 - second.score / chosen.score:.1%} is within the hysteresis"
    else:
        price = f", {words.watts(second.move_watts)} of it for the move" if second.move_watts > 0 else ""
        why = f"{words.watts(second.score - chosen.watts)} more{price}"
    return RunnerUp(target=target, power_watts=second.watts, why_not=why)


def _option(found: Search, item: Scored) -> str:
    return words.option(item.row.replicas, item.row.power, found.case.space.engines[item.row.engine])


def _at(case: Case, item: Scored) -> str:
    rate = case.workload.requests_per_second
    return (
        f"at {rate:.3g} req/s {words.latency(case.request.slo, item.figures.ttft_seconds, item.figures.tpot_seconds)}"
    )
