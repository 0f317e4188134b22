"""What is told of a chosen target beside the choice: the check that it passed, and what small changes would do."""

from collections.abc import Sequence
from dataclasses import replace

from wattkeeper.domain.plan import Plan, SlaCheck, WhatIf
from wattkeeper.planner.evidence import Judged
from wattkeeper.planner.grid import MORE_LOAD
from wattkeeper.planner.scored import Search
from wattkeeper.planner.search import judge
from wattkeeper.planner.sizing import Row, SlaModel
from wattkeeper.planner.space import Power
from wattkeeper.planner.wishes import row_of, wishes


def complete(found: Sequence[tuple[Plan, Search]], *, predict: SlaModel) -> list[Plan]:
    """The plans with their check and their wishes for replays; one call of the SLA check for all of them."""
    targets = {id(search): row_of(search, plan.target) for plan, search in found}
    asked = {id(search): _changes(search, targets[id(search)]) for _, search in found}

    def rows(search: Search) -> list[Row]:
        return [targets[id(search)], *(row for _, row in asked[id(search)])]

    judge([search for _, search in found], rows, predict=predict)
    return [_completed(plan, search, asked[id(search)]) for plan, search in found]


def _completed(plan: Plan, search: Search, changes: list[tuple[str, Row]]) -> Plan:
    if search.error:
        return plan
    case, row = search.case, row_of(search, plan.target)
    judged: Judged | None = None if search.evidence is None else search.evidence.judge(row)
    figures = search.ledger.figures([row])[0]
    what_if = []
    for (change, other), then in zip(changes, search.ledger.figures([row for _, row in changes]), strict=True):
        what_if.append(
            WhatIf(
                change=change,
                ttft_seconds=then.ttft_upper_seconds,
                tpot_seconds=then.tpot_upper_seconds,
                utilisation=then.utilisation,
                violation=search.ledger.violation(other),
            )
        )
    check = SlaCheck(
        margin=case.margin,
        load_ceiling=case.ceiling,
        ttft_upper_seconds=figures.ttft_upper_seconds * (1.0 + case.margin),
        tpot_upper_seconds=figures.tpot_upper_seconds * (1.0 + case.margin),
        replay="" if judged is None else judged.standing.value,
        replayed=None if judged is None else judged.replayed,
        what_if=tuple(what_if),
    )
    return replace(plan, check=check, wishes=wishes(search, plan.target))


def _changes(search: Search, row: Row) -> list[tuple[str, Row]]:
    """A tenth more load, a replica less, and the next lower limit, as far as they exist."""
    space = search.case.space
    found = [("10 % more rate", row._replace(load=row.load * MORE_LOAD))]
    if row.replicas > 1:
        found.append(("one replica less", row._replace(replicas=row.replicas - 1)))
    cap, clock = row.power
    if lower := [value for value in space.caps_watts if cap is None or value < cap]:
        found.append((f"cap {lower[-1]:.0f} W", row._replace(power=Power(cap_watts=lower[-1], clock_mhz=clock))))
    if lower := [value for value in space.clocks_mhz if clock is None or value < clock]:
        found.append((f"clock {lower[-1]:.0f} MHz", row._replace(power=Power(cap_watts=cap, clock_mhz=lower[-1]))))
    return found
