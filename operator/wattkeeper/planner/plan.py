"""plan(): the joint decision over replicas, power limits and engine arguments. Pure; no clock, no I/O.

For all services at once: 1. the guard chain (planner.guards) - 2. levers, margins, least replicas (planner.sizing) -
3. candidates judged and priced (planner.search) - 4. the decision rule (planner.choose). A service whose data cannot be
worked with gets full power and keeps its replicas; the others are not touched by it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.plan import Binding, Plan, PlanReason, Target
from wattkeeper.planner import checks, choose, guards, search, sizing, unused, words
from wattkeeper.planner.guards import Action, Trip
from wattkeeper.planner.scored import DATA_ERRORS, Search
from wattkeeper.planner.search import PowerModel
from wattkeeper.planner.sizing import Case, SlaModel
from wattkeeper.planner.space import LeverSpace, lever_space
from wattkeeper.planner.types import PlannerSettings, PlanRequest
from wattkeeper.queueing import sla

_LOT = 200
"""Services searched together: enough to share the cost of every call, few enough to keep their candidates in memory."""


@dataclass(frozen=True, kw_only=True)
class Examined:
    """A plan with the search behind it; no search where a guard decided."""

    plan: Plan
    search: Search | None


def plan(
    requests: Sequence[PlanRequest],
    *,
    energy: PowerModel,
    settings: PlannerSettings,
    predict: SlaModel = sla.predict_fleet,
) -> list[Plan]:
    """One plan per request, in their order. Bad data of a service never raise: that service gets a safe plan."""
    plans: list[Plan] = []
    for begin in range(0, len(requests), _LOT):
        lot = requests[begin : begin + _LOT]
        plans += [item.plan for item in examine(lot, energy=energy, settings=settings, predict=predict)]
    return plans


def examine(
    requests: Sequence[PlanRequest],
    *,
    energy: PowerModel,
    settings: PlannerSettings,
    predict: SlaModel = sla.predict_fleet,
) -> list[Examined]:
    """The same plans with the candidates they were chosen from."""
    results: list[Examined | None] = [None] * len(requests)
    cases: list[tuple[int, Case, Trip | None]] = []
    for index, request in enumerate(requests):
        try:
            trip = guards.first_trip(request, settings)
            if trip is None or _sizeable(request, trip):
                cases.append((index, sizing.make_case(request, settings), trip))
            else:
                results[index] = Examined(plan=_guarded(request, trip, settings), search=None)
        except DATA_ERRORS as error:
            results[index] = Examined(plan=_failed(request, str(error)), search=None)
    searches = search.begin([case for _, case, _ in cases], predict=predict)
    free = [found for (_, _, trip), found in zip(cases, searches, strict=True) if trip is None]
    search.run(free, energy=energy, predict=predict)
    chosen: list[tuple[int, Plan, Search]] = []
    for (index, _, trip), found in zip(cases, searches, strict=True):
        if found.error:
            results[index] = Examined(
                plan=_failed(requests[index], found.error), search=found if trip is None else None
            )
        elif trip is None:
            chosen.append((index, choose.choose(found), found))
        else:
            results[index] = Examined(plan=_more_capacity(requests[index], trip, settings, found), search=None)
    plans = checks.complete([(decided, found) for _, decided, found in chosen], predict=predict)
    for (index, _, found), decided in zip(chosen, plans, strict=True):
        results[index] = Examined(plan=decided, search=found)
    return [
        _noted(result, request, settings)
        for result, request in zip(results, requests, strict=True)
        if result is not None
    ]


def _noted(examined: Examined, request: PlanRequest, settings: PlannerSettings) -> Examined:
    """With a word on replicas that the router leaves without work."""
    text = unused.note(request, settings)
    if not text:
        return examined
    decided = examined.plan
    return replace(examined, plan=replace(decided, message=f"{decided.message.removesuffix('.')}; {text}."))


def _sizeable(request: PlanRequest, trip: Trip) -> bool:
    """True where the models can say how much more capacity is needed."""
    known = request.observation.workload is not None and request.planned_rate is not None
    return trip.action is Action.MORE_CAPACITY and known


def _guarded(request: PlanRequest, trip: Trip, settings: PlannerSettings) -> Plan:
    if trip.action is Action.MORE_CAPACITY:
        return _more_capacity(request, trip, settings, None)
    space = lever_space(request, settings)
    target = space.current if request.current.replicas > 0 else request.current
    if trip.action is Action.FULL_POWER:
        target = _at_full_power(space, target.replicas)
    return _held(target, trip.reason, trip.message)


def _more_capacity(request: PlanRequest, trip: Trip, settings: PlannerSettings, sized: Search | None) -> Plan:
    """Full power now, and replicas: what the models ask for, and a step more unless the last ones still start.

    Where all that is in place already and the models say that other engine arguments would meet the SLO, those.
    `sized` is None where nothing is known to ask the models about.
    """
    space = lever_space(request, settings) if sized is None else sized.case.space
    now = space.current.replicas
    needed = {} if sized is None else _needed(sized)
    wanted = max(now, needed.get(0) or now)
    if not _starting(request, settings):
        wanted = max(wanted, now + max(1, math.ceil(settings.guard_scale_up_ratio * now)))
    target = _at_full_power(space, min(wanted, space.high))
    message = f"{trip.message}: {words.target(target)}"
    engine_change = EngineChange()
    if target == request.current and 0 not in needed and needed:
        option = space.engines[min(needed, key=lambda index: needed[index])]
        target = Target(
            replicas=target.replicas,
            power_cap_watts=target.power_cap_watts,
            clock_mhz=target.clock_mhz,
            engine=option.settings,
        )
        engine_change = option.change
        message += f", and {words.change(option.change)}, without which no replica count meets the SLO"
    elif target.replicas == space.high == now:
        message += ", the most there is" + (" (no free GPUs)" if space.gpu_bound else "")
    return Plan(
        target=target,
        engine_change=engine_change,
        reason=trip.reason,
        message=f"{message}.",
        binding=Binding.MAX_REPLICAS if target.replicas == space.high else Binding.NONE,
        runner_up=None,
        prediction=None,
        planned_requests_per_second=None if sized is None else sized.case.workload.requests_per_second,
        feasible=sized is None or 0 in needed or bool(engine_change),
    )


def _needed(sized: Search) -> dict[int, int]:
    """Least replicas by engine index, for the engines that can meet the SLO at all."""
    return {engine: found.replicas for engine, found in sized.required.items() if found.replicas is not None}


def _starting(request: PlanRequest, settings: PlannerSettings) -> bool:
    """True while replicas asked for earlier may not have shown their effect yet."""
    last = request.memory.last_scale_up_seconds
    settling = request.startup_seconds + settings.observation_window_seconds
    return request.ready_replicas < request.current.replicas or (
        last is not None and request.now_seconds - last < settling
    )


def _at_full_power(space: LeverSpace, replicas: int) -> Target:
    return Target(
        replicas=replicas,
        power_cap_watts=space.full_power.cap_watts,
        clock_mhz=space.full_power.clock_mhz,
        engine=space.current.engine,
    )


def _held(target: Target, reason: PlanReason, message: str) -> Plan:
    return Plan(
        target=target,
        engine_change=EngineChange(),
        reason=reason,
        message=message,
        binding=Binding.EVIDENCE,
        runner_up=None,
        prediction=None,
        planned_requests_per_second=None,
        feasible=True,
    )


def _failed(request: PlanRequest, error: str) -> Plan:
    """Full power with the replicas in place, within the user's bounds; without any model."""
    lever = request.levers.replicas
    replicas = request.current.replicas
    if lever is not None and replicas > 0:
        replicas = min(max(replicas, lever.minimum, 1), max(lever.maximum, lever.minimum, 1))
    cap, clock = request.levers.power_cap, request.levers.clock_lock
    gpu = request.profile.gpu
    target = Target(
        replicas=replicas,
        power_cap_watts=cap.maximum if request.power_lever and cap and cap.maximum < gpu.tdp_watts else None,
        clock_mhz=clock.maximum if request.power_lever and clock and clock.maximum < gpu.max_clock_mhz else None,
        engine=request.current.engine,
    )
    return _held(target, PlanReason.FAILED, f"Full power, replicas held: {request.key} could not be planned: {error}.")
