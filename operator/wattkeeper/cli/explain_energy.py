"""`wattkeeper explain` about energy: what moves the watts to the plan's, and energy against latency of all options.

The plan is compared with what is in place and with the static counterfactual of the savings account.
"""

import csv
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.cli import calibrate, explain_factors, live_service
from wattkeeper.controller import counterfactual, full_power, reachable, restated
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import Slo, Target
from wattkeeper.energy import columns, contributions, points
from wattkeeper.energy.calibration import Calibration
from wattkeeper.energy.contributions import CAUSES, DIMENSIONS, State
from wattkeeper.energy.model import EnergyModel
from wattkeeper.energy.trained_range import Untrained
from wattkeeper.planner import front, words
from wattkeeper.planner.front import Option
from wattkeeper.planner.plan import examine
from wattkeeper.planner.scored import Search
from wattkeeper.planner.sizing import Row
from wattkeeper.planner.types import PlannerSettings

_SUFFIXES = (".png", ".csv", ".json")
_LEAST_SHARE_LOG = 0.005
"""Smaller shares are left out of the text: half a percent of the watts."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one cause adds to ln(watts over those in place); `physics` and `learned` add up to it."""

    name: str
    dimension: str
    description: str
    physics: float
    learned: float

    @property
    def total(self) -> float:
        """Of both."""
        return self.physics + self.learned


@dataclass(frozen=True, kw_only=True)
class Move:
    """What leads from the watts of one state to those of the plan."""

    from_watts: float
    live_readings: float
    """What live readings add to ln(watts / from_watts) beside the shares: they correct the model by batch."""
    dimensions: tuple[tuple[str, float, float], ...]
    """Name, physics and learned part of the share of each dimension in ln(watts / from_watts)."""
    shares: tuple[Share, ...]
    """The same by cause, largest first."""


@dataclass(frozen=True, kw_only=True)
class EnergyExplained:
    """Watts of the plan against those of what is in place and of the static counterfactual, and the options."""

    service: str
    energy_model: str
    slo: Slo
    requests_per_second: float
    """The rate that all watts are of."""
    tokens_per_second: float
    """Output tokens at that rate."""
    watts: float
    in_place: Move
    static: Move
    static_target: Target
    untrained: tuple[Untrained, ...]
    """What widens the interval of the plan's watts."""
    factors: tuple[tuple[str, str, float], ...]
    """Of the learned part: factor, dimension, share of ln(watts); largest first."""
    options: tuple[Option, ...]


def explained(service: str, objects: Sequence[dict[str, Any]], energy: EnergyModel) -> EnergyExplained:
    """Explanation from the InferenceService and the ModelProfile among `objects`.

    Raises WattkeeperError: the service is not among them, its status does not tell what is needed, or a guard holds it.
    """
    spec, status, owner = live_service.parsed(service, objects)
    measured = None if owner is None else (status.profile.model_profile or "", owner.spec)
    profile = reachable.profile_of(spec, status, measured)
    kept, _ = calibrate.kept_of(status, owner, profile, energy.version)
    readings = calibrate.readings_of(kept)
    calibration = Calibration(kernel=energy.kernel_of(profile), readings=readings) if readings else None
    free = None
    if kept is not None:
        free = full_power.from_status(kept.full_power, wall=time.time(), service=service)
    request = restated.request(service, spec, status, profile, calibration=calibration, full_power=free, energy=energy)
    search = examine([request], energy=energy, settings=PlannerSettings())[0].search
    if search is None or search.error:
        why = search.error if search is not None else "a guard holds it, no candidates are weighed"
        raise WattkeeperError(f"the energy of {service} cannot be explained: {why}")
    decided = restated.planned(status)
    options = front.options(search, energy=energy, planned=decided)
    static_target = counterfactual.target(request.levers, request.current, ready_replicas=request.ready_replicas)
    place, static = (front.row_of(search, target) for target in (search.case.space.current, static_target))
    plan = place if decided is None else front.row_of(search, decided)
    search.ledger.add([static])
    before, after = _state(search, place), _state(search, plan)
    static_watts = float(energy.watts([front.query(search, [static])])[0].watts[0])
    in_place_watts = next(option.watts for option in options if option.in_place)
    watts = next((option.watts for option in options if option.planned), in_place_watts)
    trees = (energy.learned_by_column(after.points) - energy.learned_by_column(before.points))[0]
    named = [
        (each.name, each.dimension.value, float(value)) for each, value in zip(columns.COLUMNS, trees, strict=True)
    ]
    return EnergyExplained(
        service=service,
        energy_model=energy.version,
        slo=request.slo,
        requests_per_second=search.case.workload.requests_per_second,
        tokens_per_second=search.case.workload.requests_per_second * search.case.workload.output.mean,
        watts=watts,
        in_place=_move(before, after, energy, from_watts=in_place_watts, watts=watts),
        static=_move(_state(search, static), after, energy, from_watts=static_watts, watts=watts),
        static_target=static_target,
        untrained=energy.outside(after.points)[0],
        factors=tuple(sorted(named, key=lambda item: -abs(item[2]))),
        options=tuple(options),
    )


def _move(before: State, after: State, energy: EnergyModel, *, from_watts: float, watts: float) -> Move:
    """`from_watts` and `watts` are the predictions for both, live readings included."""
    whole = contributions.contributions(before, after, lambda states: _priced(states, energy))
    physics = contributions.contributions(before, after, lambda states: _priced(states, EnergyModel.physics_only()))
    shares = [
        Share(
            name=cause.name,
            dimension=cause.dimension.value,
            description=cause.description,
            physics=float(physics.by_cause[0, index]),
            learned=float(whole.by_cause[0, index] - physics.by_cause[0, index]),
        )
        for index, cause in enumerate(CAUSES)
    ]
    parts = zip(DIMENSIONS, physics.by_dimension[0], (whole.by_dimension - physics.by_dimension)[0], strict=True)
    return Move(
        from_watts=from_watts,
        live_readings=math.log(watts / from_watts) - math.log(float(whole.watts[0] / whole.reference_watts[0])),
        dimensions=tuple((dimension.value, float(physical), float(learned)) for dimension, physical, learned in parts),
        shares=tuple(sorted(shares, key=lambda share: -abs(share.total))),
    )


def _state(search: Search, row: Row) -> State:
    asked = front.query(search, [row])
    state, busy = points.of_queries([asked])
    return State(points=state, busy=busy, replicas=np.asarray(asked.candidates.replicas, dtype=np.float64))


def _priced(states: Sequence[State], energy: EnergyModel) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    found = energy.busy_watts([state.points for state in states])
    return [state.watts(watts) for state, watts in zip(states, found, strict=True)]


def facts(found: EnergyExplained) -> dict[str, Any]:
    """For programs; shares are of ln(watts / watts it is compared with)."""
    static = found.static_target
    return {
        "energyModel": found.energy_model,
        "qps": found.requests_per_second,
        "watts": found.watts,
        "joulesPerToken": found.watts / found.tokens_per_second,
        "inPlaceWatts": found.in_place.from_watts,
        "inPlaceJoulesPerToken": found.in_place.from_watts / found.tokens_per_second,
        "untrained": explain_factors.untrained_facts(found.untrained),
        **_move_facts(found.in_place),
        "learnedByFactor": [
            {"name": name, "dimension": dimension, "share": share} for name, dimension, share in found.factors
        ],
        "static": {
            "replicas": static.replicas,
            "watts": found.static.from_watts,
            "joulesPerToken": found.static.from_watts / found.tokens_per_second,
            **_move_facts(found.static),
        },
    }


def _move_facts(move: Move) -> dict[str, Any]:
    return {
        "liveReadings": move.live_readings,
        "dimensions": {name: {"physics": physics, "learned": learned} for name, physics, learned in move.dimensions},
        "causes": [asdict(share) for share in move.shares],
    }


def lines(found: EnergyExplained) -> Iterator[str]:
    """For people."""
    place, static, tokens = found.in_place, found.static, found.tokens_per_second
    yield (
        f"  energy:        {words.watts(found.watts)} planned against {words.watts(place.from_watts)} in place "
        f"({_change(found.watts, place)}), by {found.energy_model}"
    )
    if doubt := explain_factors.uncertain(found.untrained):
        yield f"    less certain: {doubt}"
    if _still(found.watts, place):
        yield "    the plan is what is in place: nothing moves the watts"
    else:
        yield from _parts(place)
        named = [f"{name} {_percent(share).strip()}" for name, _, share in found.factors[:3] if _counts(share)]
        if named:
            yield f"    the learned part goes by {', '.join(named)}"
    yield (
        f"  static:        {words.watts(found.watts)} planned against {words.watts(static.from_watts)} of "
        f"{words.target(found.static_target)} ({_change(found.watts, static)})"
    )
    yield (
        f"    {found.watts / tokens:.3g} against {static.from_watts / tokens:.3g} J/token at "
        f"{found.requests_per_second:.3g} req/s; the counterfactual of the savings account"
    )
    if _still(found.watts, static):
        yield "    the plan is the static fleet: nothing is saved"
    else:
        yield from _parts(static)


def _change(watts: float, move: Move) -> str:
    return f"{watts / move.from_watts - 1.0:+.1%}"


def _still(watts: float, move: Move) -> bool:
    return not _counts(math.log(watts / move.from_watts)) and not any(_counts(share.total) for share in move.shares)


def _counts(log: float) -> bool:
    return abs(log) >= _LEAST_SHARE_LOG


def _parts(move: Move) -> Iterator[str]:
    """A line per dimension, and one for live readings where they matter."""
    for name, physics, learned in move.dimensions:
        mine = [share for share in move.shares if share.dimension == name]
        text = (
            f"    {name:<13} {_percent(physics + learned)}  (physics {_percent(physics)}, learned {_percent(learned)})"
        )
        causes = [f"{each.name} {_percent(each.total).strip()}" for each in mine if _counts(each.total)]
        yield f"{text}  {', '.join(causes)}".rstrip()
    if _counts(move.live_readings):
        yield f"    live readings {_percent(move.live_readings)}"


def _percent(log: float) -> str:
    """A share of ln(watts) as the change it makes alone."""
    return f"{math.expm1(log):+7.1%}"


def write(found: EnergyExplained, path: Path) -> str:
    """Write the options as picture, CSV or JSON by the file's ending; returns a sentence about it.

    Raises WattkeeperError: another ending.
    """
    if path.suffix not in _SUFFIXES:
        raise WattkeeperError(f"{path} is none of {', '.join(_SUFFIXES)}: give --pareto a file with such an ending")
    rows = [asdict(option) for option in found.options]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        bare = [{name: _finite(value) for name, value in row.items()} for row in rows]
        slo = {
            name: None if goal is None else asdict(goal)
            for name, goal in (("ttft", found.slo.ttft), ("tpot", found.slo.tpot))
        }
        path.write_text(json.dumps({"service": found.service, "slo": slo, "options": bare}, indent=2), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows({**row, "engine": words_of(row["engine"])} for row in rows)
    else:
        from wattkeeper.evaluation import front_picture  # matplotlib takes a second to load

        front_picture.draw(found.options, found.slo, title=found.service, path=path)
    best = sum(option.best for option in found.options)
    feasible = sum(option.feasible for option in found.options)
    return f"wrote {path}: {len(rows)} options, {feasible} within the SLO, {best} on the front of watts, TTFT and TPOT"


def words_of(engine: dict[str, Any]) -> str:
    """Engine arguments as name=value."""
    return ", ".join(f"{name}={value}" for name, value in engine.items())


def _finite(value: Any) -> Any:
    """JSON has no infinity: null stands for a latency without bound."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
