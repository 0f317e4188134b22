"""Candidates of a whole fleet: enumerated coarse to fine, judged by the SLA check, priced in watts.

Each pass makes one call of the SLA check and one of the energy model for all services together. The first pass takes a
window of replica counts from the least feasible one upwards, times a coarse grid of power limits, times every engine
option; the second fills in the power grid around the best of the first. What is in place is always a candidate, and the
grid around it does not depend on it, so that a plan once applied is found again.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np

from wattkeeper.domain.plan import Binding
from wattkeeper.energy.model import EnergyQuery, WattsPrediction
from wattkeeper.planner import grid, holds, sizing, words
from wattkeeper.planner.evidence import UNKNOWN, Evidence, Standing, needs_evidence
from wattkeeper.planner.scored import DATA_ERRORS, Scored, Search
from wattkeeper.planner.sizing import Case, Ledger, Required, Row, SlaModel
from wattkeeper.queueing.types import Candidates, SlaPrediction

_Query = TypeVar("_Query")
_Answer = TypeVar("_Answer")


class PowerModel(Protocol):
    """`energy.model.EnergyModel`, or a stand-in."""

    def watts(self, queries: Sequence[EnergyQuery]) -> list[WattsPrediction]:
        """Expected watts of all GPUs, one answer per query."""


def begin(cases: Sequence[Case], *, predict: SlaModel) -> list[Search]:
    """Least replicas of every engine option at full power, for the planned and for the stabilised rate.

    What most services will ask about is judged for all of them in one call.
    """
    searches = [Search(case=case, ledger=Ledger(case, predict=predict)) for case in cases]
    judge(searches, lambda search: grid.likely_rows(search.case), predict=predict)
    for search in _live(searches):
        with _errors_to(search):
            _size(search)
    return searches


@contextmanager
def _errors_to(search: Search) -> Iterator[None]:
    """Bad data of a service become its error, and leave the others alone."""
    try:
        yield
    except DATA_ERRORS as error:
        search.error = str(error)


def _size(search: Search) -> None:
    case, ledger = search.case, search.ledger
    low, high, now = case.space.low, case.space.high, case.space.current.replicas
    engines = range(len(case.space.engines))
    search.evidence = Evidence.of(case)
    if search.evidence is not None:
        search.evidence = _lift_ceiling(search, search.evidence)
        case = search.case
    search.required = sizing.required_replicas(ledger, low=low, high=high, engines=engines)
    if search.evidence is not None:
        search.required = {
            engine: _worse(found, search.evidence.floor(engine), high=high) for engine, found in search.required.items()
        }
    floors = {engine: found.replicas for engine, found in search.required.items() if found.replicas is not None}
    down = [engine for engine, least in floors.items() if least < now]
    if down and case.stabilised_load > 1:
        held = sizing.required_replicas(ledger, low=low, high=now - 1, engines=down, load=case.stabilised_load)
        for engine, found in held.items():
            floors[engine] = max(floors[engine], now if found.replicas is None else found.replicas)
    search.floors = _promising(ledger, floors)
    search.hopeless = not ledger.feasible(grid.idle_row(case))


def _lift_ceiling(search: Search, evidence: Evidence) -> Evidence:
    """Let the planned load come a step closer to one than what replays of the engine in place showed to be safe.

    Ceilings stand for bursts that the analytic check knows little of; a replay has them. What is planned beyond one
    takes less capacity than is in place, and so waits for a replay of its own.
    """
    case, settings = search.case, search.case.settings
    shown = {row: rate for row, rate in evidence.proved() if case.space.low <= row.replicas <= case.space.high}
    if not shown:
        return evidence
    search.ledger.add(shown)
    planned = case.workload.requests_per_second
    loads = [
        found.utilisation * rate / planned
        for (row, rate), found in zip(shown.items(), search.ledger.figures(list(shown)), strict=True)
    ]
    ceiling = min(settings.planned_load_ceiling_proved, max(loads) * (1.0 + settings.planned_load_step_ratio))
    if ceiling <= case.ceiling:
        return evidence
    search.case = replace(case, ceiling=ceiling)
    search.ledger.judge_by(search.case)
    return replace(evidence, case=search.case)


def _worse(analytic: Required, replayed: tuple[int, Binding], *, high: int) -> Required:
    """The least replicas that neither the analytic check nor a replay rejects."""
    missing, binding = replayed
    if analytic.replicas is None or missing < analytic.replicas:
        return analytic
    return Required(replicas=missing + 1 if missing < high else None, below=binding)


def judge(searches: Sequence[Search], rows_of: Callable[[Search], Iterable[Row]], *, predict: SlaModel) -> None:
    """Judge rows of every service in one call; a service whose data it cannot work with gets an error."""
    asked = []
    for search in searches:
        with _errors_to(search):
            new = search.ledger.unknown(rows_of(search))
            if new:
                asked.append((search, new, search.ledger.query(new)))
    queries = [query for _, _, query in asked]
    for (search, new, query), answer in zip(asked, _answers(predict, queries), strict=True):
        if isinstance(answer, str):
            search.error = answer
        else:
            search.ledger.take(new, query.candidates, answer)


def _promising(ledger: Ledger, floors: dict[int, int]) -> dict[int, int]:
    """The engine in place and the few that need the fewest replicas, or leave the most slack with as many."""
    if not any(floors):
        return floors
    rows = {engine: sizing.full_power_row(ledger.case, floor, engine=engine) for engine, floor in floors.items()}
    ledger.add(rows.values())
    slo, order = ledger.case.request.slo, {}
    for engine, found in zip(rows, ledger.figures(list(rows.values())), strict=True):
        bounds = ((slo.ttft, found.ttft_upper_seconds), (slo.tpot, found.tpot_upper_seconds))
        latencies = [value / goal.seconds for goal, value in bounds if goal is not None]
        order[engine] = floors[engine], max([found.utilisation / ledger.case.ceiling, *latencies])
    best = sorted(filter(None, order), key=lambda engine: order[engine])[: ledger.case.settings.grid_engine_finalists]
    return {engine: floor for engine, floor in floors.items() if engine == 0 or engine in best}


def run(searches: Sequence[Search], *, energy: PowerModel, predict: SlaModel) -> None:
    """Both passes for all services; fills `scored`, or `error` where a service's data cannot be worked with."""
    judge(_live(searches), grid.window_rows, predict=predict)
    for rows_of in (grid.coarse_rows, grid.fine_rows):
        _pass(_live(searches), rows_of, energy=energy, predict=predict)


def _live(searches: Sequence[Search]) -> list[Search]:
    return [search for search in searches if not search.error]


def _pass(
    searches: Sequence[Search], rows_of: Callable[[Search], list[Row]], *, energy: PowerModel, predict: SlaModel
) -> None:
    """Judge the rows of every service, ask the energy model once for all, and add the scored rows."""
    rows: dict[int, list[Row]] = {}
    for search in searches:
        with _errors_to(search):
            rows[id(search)] = rows_of(search)
    judge(_live(searches), lambda search: rows[id(search)], predict=predict)
    asked: list[tuple[Search, list[Row], list[Row]]] = []
    queries = []
    for search in _live(searches):
        with _errors_to(search):
            shown = (grid.row_in_place(search.case), sizing.full_power_row(search.case, search.case.space.high))
            wanted = [row for row in rows[id(search)] if search.ledger.feasible(row) or row in shown]
            if wanted:
                candidates, sla = search.ledger.table(wanted)
                queries.append(_query(search.case, candidates, sla))
                asked.append((search, rows[id(search)], wanted))
    for (search, scored, wanted), answer in zip(asked, _answers(energy.watts, queries), strict=True):
        if isinstance(answer, str):
            search.error = f"energy model: {answer}"
        else:
            search.scored += _score(search, scored, wanted, answer)


def _query(case: Case, candidates: Candidates, sla: SlaPrediction) -> EnergyQuery:
    return EnergyQuery(
        profile=case.request.profile,
        workload=case.workload,
        candidates=candidates,
        sla=sla,
        calibration=case.request.calibration,
    )


def _answers(ask: Callable[[Sequence[_Query]], Sequence[_Answer]], queries: list[_Query]) -> list[_Answer | str]:
    """One call for all; where some service's data break it, one call each, with the error in place of the answer."""
    try:
        return list(ask(queries)) if queries else []
    except DATA_ERRORS:
        answers: list[_Answer | str] = []
        for query in queries:
            try:
                answers += ask([query])
            except DATA_ERRORS as error:
                answers.append(str(error))
        return answers


def _score(search: Search, rows: list[Row], wanted: list[Row], answer: WattsPrediction) -> list[Scored]:
    case, now = search.case, search.case.space.current.replicas
    at = {row: index for index, row in enumerate(wanted)}
    watts = np.full((3, len(rows)), math.nan)
    known = [index for index, row in enumerate(rows) if row in at]
    watts[:, known] = np.stack([answer.watts, answer.low_watts, answer.high_watts])
    figures = search.ledger.figures(rows)
    hold, waits, evidence = holds.scale_down_hold(case), _waits(search, rows), search.evidence
    accused = {} if evidence is None else {engine: evidence.accuses(engine) for engine in evidence.by_engine}
    result = []
    for index, row in enumerate(rows):
        violation = search.ledger.violation(row)
        blocked, held, judged = hold if row.engine == 0 and row.replicas < now else "", False, UNKNOWN
        less = evidence is not None and needs_evidence(case, row)
        if evidence is not None and violation is Binding.NONE and (less or accused.get(row.engine)):
            judged = evidence.judge(row)
            if judged.standing is Standing.MISSES:
                violation = judged.binding
            elif judged.standing is not Standing.MEETS and less:
                held = not blocked
                blocked = blocked or words.standing(judged, case.request.slo, case.margin, case.request.replays)
        if violation is Binding.NONE and not math.isfinite(watts[0, index]):
            search.error = "the energy model gave watts that are no finite numbers"
        result.append(
            Scored(
                row=row,
                violation=violation,
                blocked=blocked,
                held=held,
                judged=judged,
                waiting=waits[index],
                watts=float(watts[0, index]),
                low_watts=float(watts[1, index]),
                high_watts=float(watts[2, index]),
                move_watts=_move_watts(case, row),
                figures=figures[index],
            )
        )
    return result


def _move_watts(case: Case, row: Row) -> float:
    """Start-up energy of added replicas, or of all for new engine arguments, over the expected stay."""
    settings, now = case.settings, case.space.current.replicas
    if row.engine:
        return max(row.replicas, now) * start_joules(case) / settings.engine_dwell_seconds
    return max(0, row.replicas - now) * start_joules(case) / settings.replica_dwell_seconds


def start_joules(case: Case) -> float:
    """Energy of the start of one replica."""
    request = case.request
    gpus = request.profile.gpus_per_replica
    return case.settings.startup_share_of_tdp * request.profile.gpu.tdp_watts * gpus * request.startup_seconds


def _waits(search: Search, rows: Sequence[Row]) -> list[str]:
    """Why the limits of each row must wait: a timer, or replicas that still start and leave the load to the others."""
    case = search.case
    hold, current, ready = holds.power_down_hold(case), case.space.current_power, case.request.ready_replicas
    waits = [hold if row.power.deeper_than(current) else "" for row in rows]
    serving = {
        index: row._replace(replicas=max(1, ready))
        for index, row in enumerate(rows)
        if not waits[index] and row.replicas > ready and row.power != case.space.full_power
    }
    search.ledger.add(serving.values())
    for index, row in serving.items():
        if ready == 0 or not search.ledger.feasible(row):
            waits[index] = f"only {ready} of {rows[index].replicas} replicas are ready"
    return waits


def rejection(case: Case, item: Scored) -> str:
    """Why a candidate is not feasible: by the analytic check, or by a replay."""
    slo = case.request.slo
    if item.judged.standing is Standing.MISSES:
        return words.standing(item.judged, slo, case.margin, case.request.replays)
    return words.violation(
        item.violation, slo, item.figures.ttft_upper_seconds, item.figures.tpot_upper_seconds, case.margin
    )
