"""`wattkeeper explain` about energy: what moves the watts to the plan's, and energy against latency of all options."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattkeeper.cli import calibrate
from wattkeeper.controller import reachable, restated
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import Slo
from wattkeeper.energy import columns, contributions, points
from wattkeeper.energy.calibration import Calibration
from wattkeeper.energy.contributions import CAUSES, DIMENSIONS, State
from wattkeeper.energy.model import EnergyModel
from wattkeeper.planner import front, words
from wattkeeper.planner.front import Option
from wattkeeper.planner.plan import examine
from wattkeeper.planner.search import Search
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
class EnergyExplained:
    """Watts of the plan against those of what is in place, and the options."""

    service: str
    energy_model: str
    slo: Slo
    watts: float
    in_place_watts: float
    live_readings: float
    """What live readings add to ln(watts / watts in place) beside the shares: they correct the model by batch."""
    shares: tuple[Share, ...]
    factors: tuple[tuple[str, str, float], ...]
    """Of the learned part: factor, dimension, share of ln(watts); largest first."""
    options: tuple[Option, ...]


def explained(service: str, objects: Sequence[dict[str, Any]], energy: EnergyModel) -> EnergyExplained:
    """Explanation from the InferenceService and the ModelProfile among `objects`.

    Raises WattkeeperError: the service is not among them, its status does not tell what is needed, or a guard holds it.
    """
    spec, status, owner = calibrate.parsed(service, objects)
    measured = None if owner is None else (status.profile.model_profile or "", owner.spec)
    profile = reachable.profile_of(spec, status, measured)
    readings, _ = calibrate.readings_of(status, owner, energy.version)
    calibration = Calibration(kernel=energy.kernel, readings=readings) if readings else None
    request = restated.request(service, spec, status, profile, calibration=calibration)
    search = examine([request], energy=energy, settings=PlannerSettings())[0].search
    if search is None or search.error:
        why = search.error if search is not None else "a guard holds it, no candidates are weighed"
        raise WattkeeperError(f"the energy of {service} cannot be explained: {why}")
    decided = restated.planned(status)
    options = front.options(search, energy=energy, planned=decided)
    place = front.row_of(search, search.case.space.current)
    before, after = (
        _state(search, row) for row in (place, place if decided is None else front.row_of(search, decided))
    )
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
        watts=watts,
        in_place_watts=in_place_watts,
        live_readings=math.log(watts / in_place_watts) - math.log(float(whole.watts[0] / whole.reference_watts[0])),
        shares=tuple(sorted(shares, key=lambda share: -abs(share.total))),
        factors=tuple(sorted(named, key=lambda item: -abs(item[2]))),
        options=tuple(options),
    )


def _state(search: Search, row: Row) -> State:
    asked = front.query(search, [row])
    state, busy = points.of_queries([asked])
    return State(points=state, busy=busy, replicas=np.asarray(asked.candidates.replicas, dtype=np.float64))


def _priced(states: Sequence[State], energy: EnergyModel) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    found = energy.busy_watts([state.points for state in states])
    return [state.watts(watts) for state, watts in zip(states, found, strict=True)]


def facts(found: EnergyExplained) -> dict[str, Any]:
    """For programs; shares are of ln(watts / watts in place)."""
    return {
        "energyModel": found.energy_model,
        "watts": found.watts,
        "inPlaceWatts": found.in_place_watts,
        "liveReadings": found.live_readings,
        "dimensions": {
            dimension.value: {
                "physics": sum(share.physics for share in found.shares if share.dimension == dimension.value),
                "learned": sum(share.learned for share in found.shares if share.dimension == dimension.value),
            }
            for dimension in DIMENSIONS
        },
        "causes": [asdict(share) for share in found.shares],
        "learnedByFactor": [
            {"name": name, "dimension": dimension, "share": share} for name, dimension, share in found.factors
        ],
    }


def lines(found: EnergyExplained) -> Iterator[str]:
    """For people."""
    change = math.log(found.watts / found.in_place_watts)
    yield (
        f"  energy:        {words.watts(found.watts)} planned against {words.watts(found.in_place_watts)} in place "
        f"({math.expm1(change):+.1%}), by {found.energy_model}"
    )
    if abs(change) < _LEAST_SHARE_LOG and all(abs(share.total) < _LEAST_SHARE_LOG for share in found.shares):
        yield "    the plan is what is in place: nothing moves the watts"
        return
    for dimension in DIMENSIONS:
        mine = [share for share in found.shares if share.dimension == dimension.value]
        physics, learned = sum(share.physics for share in mine), sum(share.learned for share in mine)
        parts = f"(physics {_percent(physics)}, learned {_percent(learned)})"
        text = f"    {dimension.value:<12} {_percent(physics + learned)}  {parts}"
        causes = [f"{each.name} {_percent(each.total).strip()}" for each in mine if abs(each.total) >= _LEAST_SHARE_LOG]
        yield f"{text}  {', '.join(causes)}".rstrip()
    named = [
        f"{name} {_percent(share).strip()}" for name, _, share in found.factors[:3] if abs(share) > _LEAST_SHARE_LOG
    ]
    if named:
        yield f"    the learned part goes by {', '.join(named)}"


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
