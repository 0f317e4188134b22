"""Whether a move that only saves energy comes too soon: what it gains must have paid for the last one.

Gains come and go with the traffic, so what a move gains is worth as long as the last state lasted. Replicas taken away
and brought back cost their start, and full power of the others until they serve: gain times the time since the last
change of replicas must exceed that. Limits cost nothing to write, but each write disturbs and gains are known to a few
per cent only: their price is the hysteresis over a dwell. What the SLO asks for is never held here: where what is in
place misses it, the least power that meets it with the same replicas is what other counts are measured against.
"""

import math
from collections.abc import Sequence

from wattkeeper.planner import sizing, words
from wattkeeper.planner.scored import Scored, Search
from wattkeeper.planner.search import start_joules


def reference(in_place: Scored, open_items: Sequence[Scored]) -> Scored | None:
    """What moves are measured against: what is in place, else its replicas at the least watts that meet the SLO.

    None where its replicas do not: then no move is too soon.
    """
    if in_place.open and not in_place.waiting:
        return in_place
    same = [item for item in open_items if item.row.replicas == in_place.row.replicas and not item.waiting]
    return min(same, key=lambda item: item.watts, default=None)


def too_soon(found: Search, against: Scored, item: Scored) -> str:
    """Why an item that would be cheaper than another must wait; empty where it need not."""
    case = found.case
    settings, memory, now = case.settings, case.request.memory, case.request.now_seconds
    gain = against.watts - item.watts
    if gain <= 0:
        return ""
    if item.row.replicas != against.row.replicas:
        what, price_joules = "replicas", _return_joules(found, against, item)
        times = (memory.last_scale_up_seconds, memory.last_scale_down_seconds)
        last = max((time for time in times if time is not None), default=None)
    else:
        what, last = "power limits", memory.last_cap_seconds
        price_joules = settings.hysteresis_ratio * against.watts * settings.power_dwell_seconds
    if last is None or (now - last) * gain >= price_joules:
        return ""
    return f"{what} moved {max(0.0, now - last):.0f} s ago, which a gain of {words.watts(gain)} does not pay for yet"


def _return_joules(found: Search, one: Scored, other: Scored) -> float:
    """Energy of going from the fewer replicas of the two to the more: starts, and full power until they serve."""
    fewer = min(one, other, key=lambda item: item.row.replicas)
    full = sizing.full_power_row(found.case, fewer.row.replicas)
    interim = next((item.watts for item in found.scored if item.row == full and math.isfinite(item.watts)), fewer.watts)
    starts = abs(one.row.replicas - other.row.replicas) * start_joules(found.case)
    return starts + max(0.0, interim - fewer.watts) * found.case.request.startup_seconds
