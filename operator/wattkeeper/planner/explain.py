"""Why a plan is what it is, as plain text: the decision, what binds it, and the best candidates of each lever."""

from collections.abc import Callable, Hashable, Iterable, Sequence

from wattkeeper.domain.plan import Binding
from wattkeeper.planner import plan as planning
from wattkeeper.planner import search as searching
from wattkeeper.planner import words
from wattkeeper.planner.evidence import Standing
from wattkeeper.planner.plan import Examined
from wattkeeper.planner.scored import Scored, Search
from wattkeeper.planner.search import PowerModel
from wattkeeper.planner.sizing import SlaModel
from wattkeeper.planner.types import PlannerSettings, PlanRequest
from wattkeeper.queueing import sla

_FEASIBLE_ROWS, _OTHER_ROWS = 5, 2
"""Candidates shown per lever."""
_HEADINGS = ("target", "watts", "move", "TTFT", "TPOT", "load", "verdict")


def explain(
    request: PlanRequest, *, energy: PowerModel, settings: PlannerSettings, predict: SlaModel = sla.predict_fleet
) -> str:
    """The plan of one service with its reasons; the same decision as `planner.plan.plan` makes, looked at closely."""
    found = planning.examine([request], energy=energy, settings=settings, predict=predict)[0]
    return "\n".join([*_decision(request, found), *([] if found.search is None else _candidates(found.search, found))])


def _decision(request: PlanRequest, found: Examined) -> list[str]:
    plan = found.plan
    lines = [
        f"{request.key}: {plan.reason.value}",
        f"  {plan.message}",
        f"  in place:  {words.target(request.current)}",
        f"  target:    {words.target(plan.target, plan.engine_change)}",
        f"  binding:   {plan.binding.value}",
    ]
    if plan.runner_up is not None:
        second = plan.runner_up
        lines.append(f"  runner-up: {words.target(second.target)}, {words.watts(second.power_watts)}: {second.why_not}")
    return lines


def _candidates(search: Search, found: Examined) -> list[str]:
    case, target = search.case, found.plan.target
    lines = [
        f"  planned:   {case.workload.requests_per_second:.3g} req/s; fewer replicas must carry "
        f"{case.stabilised_rate:.3g} req/s; margin {case.margin:.0%}; load at most {case.ceiling:.0%} of capacity",
    ]
    for index, required in search.required.items():
        name = words.change(case.space.engines[index].change) or "engine arguments in place"
        if required.replicas is None:
            text = f"not even {words.replicas(case.space.high)} meet the SLO ({required.below.value})"
        else:
            text = f"{words.replicas(required.replicas)} needed at full power, one fewer: {required.below.value}"
        lines.append(f"  {name}: {text}")
    same_engine = [item for item in search.scored if case.space.engines[item.row.engine].settings == target.engine]
    groups: list[tuple[str, list[Scored]]] = [
        ("by replicas", _best(same_engine, lambda item: item.row.replicas)),
        (
            "by power limits",
            _best((i for i in same_engine if i.row.replicas == target.replicas), lambda i: i.row.power),
        ),
        ("by engine arguments", _best(search.scored, lambda item: item.row.engine)),
    ]
    for title, items in groups:
        if len(items) > 1 or title == "by replicas":
            lines += ["", title, *_table([_HEADINGS, *(_line(search, item) for item in items)])]
    return lines


def _best(items: Iterable[Scored], key: Callable[[Scored], Hashable]) -> list[Scored]:
    """The best candidate of each group: the cheapest feasible ones, then those nearest to feasible."""
    groups: dict[Hashable, Scored] = {}
    for item in sorted(items, key=_order):
        groups.setdefault(key(item), item)
    feasible = [item for item in groups.values() if item.violation is Binding.NONE]
    others = [item for item in groups.values() if item.violation is not Binding.NONE]
    return feasible[:_FEASIBLE_ROWS] + others[:_OTHER_ROWS]


def _order(item: Scored) -> tuple[bool, float]:
    feasible = item.violation is Binding.NONE
    return not feasible, item.score if feasible else item.figures.utilisation


def _line(search: Search, item: Scored) -> tuple[str, ...]:
    case = search.case
    if item.violation is not Binding.NONE:
        verdict = searching.rejection(case, item)
    else:
        proven = item.judged.replayed is not None and item.judged.standing is Standing.MEETS
        verdict = item.blocked or item.waiting or ("feasible, replayed" if proven else "feasible")
    known = item.watts == item.watts
    return (
        words.option(item.row.replicas, item.row.power, case.space.engines[item.row.engine]),
        words.watts(item.watts) if known else "-",
        words.watts(item.move_watts) if item.move_watts else "-",
        words.seconds(item.figures.ttft_upper_seconds),
        words.seconds(item.figures.tpot_upper_seconds),
        f"{item.figures.utilisation:.0%}",
        verdict,
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
