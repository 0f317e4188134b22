"""Which candidates are looked at: windows of replica counts times power limits, coarse first, then around the best."""

import math

from wattkeeper.domain.plan import Binding
from wattkeeper.planner import sizing
from wattkeeper.planner.scored import Search
from wattkeeper.planner.sizing import Case, Row
from wattkeeper.planner.space import Power

MORE_LOAD = 1.1
"""Multiple of the planned rate at which what is in place is judged too, to tell how near the edge it is."""


def likely_rows(case: Case) -> list[Row]:
    """What the search most likely asks for, judged in its first call: all limits at and next to what is in place."""
    low, high, now = case.space.low, case.space.high, case.space.current.replicas
    probes, powers = sizing.probe(low - 1, high + 1, near=now), case.space.every()
    rows = [
        Row(replicas=count, power=power)
        for count in {now - 1, *_counts(now)}
        if low <= count <= high
        for power in powers
    ]
    rows += [
        sizing.full_power_row(case, count, engine=engine)
        for engine in range(len(case.space.engines))
        for count in probes
    ]
    if case.stabilised_load > 1:
        rows += [sizing.full_power_row(case, count, load=case.stabilised_load) for count in probes if count < now]
    in_place = row_in_place(case)
    return [in_place, in_place._replace(load=MORE_LOAD), idle_row(case), *rows]


def idle_row(case: Case) -> Row:
    """All replicas at full power with next to nothing to do."""
    return sizing.full_power_row(case, case.space.high, load=case.idle_load)


def _counts(floor: int) -> list[int]:
    """Replica counts worth a look from a least one: one more, and a quarter more (at a lower clock)."""
    return [floor, floor + 1, math.ceil(1.25 * floor)]


def window_rows(search: Search) -> list[Row]:
    """All power limits at the replica counts worth a look: what both passes may choose from."""
    powers = search.case.space.every()
    return [
        Row(count, power, engine) for engine in search.floors for count in _window(search, engine) for power in powers
    ]


def coarse_rows(search: Search) -> list[Row]:
    """What the first pass looks at: the coarse power grid, what is in place, and the first count that falls short."""
    case = search.case
    powers = case.space.coarse(case.settings.grid_power_points)
    if case.request.observation.idle:
        powers += case.space.deepest()
    windows = [(replicas, engine) for engine in search.floors for replicas in _window(search, engine)]
    rows = [Row(count, power, engine) for count, engine in windows for power in powers]
    least = search.required[0].replicas
    always = [row_in_place(case)]
    if least is None:
        always.append(sizing.full_power_row(case, case.space.high))
    elif least > case.space.low:
        always.append(sizing.full_power_row(case, least - 1))
    return list(dict.fromkeys([*always, *rows]))


def _window(search: Search, engine: int) -> list[int]:
    """Replica counts worth a look for an engine: from its floor upwards, and those in place."""
    bounds, least = search.case.space, search.required[engine].replicas or 0
    now = bounds.current.replicas
    counts = {*_counts(search.floors[engine]), *([now] if now >= least else [])}
    return sorted(count for count in counts if bounds.low <= count <= bounds.high)


def fine_rows(search: Search) -> list[Row]:
    """The power grid around the best open candidate in place and around the best roll-out."""
    case = search.case
    if case.request.observation.idle:
        around = [item for item in search.scored if item.open and item.row.engine == 0]
        best = [min(around, key=lambda item: (item.row.replicas, depth(case, item.row.power)))] if around else []
    else:
        in_place = row_in_place(case)
        grid = set(case.space.coarse(case.settings.grid_power_points))
        known = [item for item in search.scored if item.row != in_place or item.row.power in grid]
        stay = [item for item in known if item.open and item.row.engine == 0]
        held = [item for item in known if item.held and item.row.engine == 0]
        move = [item for item in known if item.violation is Binding.NONE and item.row.engine != 0]
        best = [min(group, key=lambda item: item.score) for group in (stay, held, move) if group]
    done = {item.row for item in search.scored}
    rows = [
        Row(replicas=item.row.replicas, power=power, engine=item.row.engine)
        for item in best
        for power in case.space.fine(item.row.power, case.settings.grid_power_points)
    ]
    return [row for row in dict.fromkeys(rows) if row not in done]


def depth(case: Case, power: Power) -> float:
    """How far power limits sit above their floors, 0 (deepest) upwards: each lever counts from 0 to 1."""
    total = 0.0
    for values, value in (
        (case.space.caps_watts, power.cap_watts),
        (case.space.clocks_mhz, power.clock_mhz),
    ):
        if values:
            total += values.index(value) / len(values) if value in values else 1.0
    return total


def row_in_place(case: Case) -> Row:
    """What is in place at the planned rate."""
    return Row(replicas=case.space.current.replicas, power=case.space.current_power)
