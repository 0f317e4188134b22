"""`wattkeeper calibrate`: which operating points of a live service teach the energy model most."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer

from wattkeeper.api import service_status
from wattkeeper.api.calibration import CalibrationStatus
from wattkeeper.api.model_profile import ModelProfile
from wattkeeper.cli import live_service
from wattkeeper.cli.errors import explained
from wattkeeper.cli.live_service import Context, Form, Kubeconfig, ModelFile, ServiceName, StatusFile
from wattkeeper.controller import calibrations, reachable
from wattkeeper.controller.calibrations import Pair
from wattkeeper.controller.reachable import ReachablePoint
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.energy import next_readings
from wattkeeper.energy.calibration import CalibrationKernel, Reading
from wattkeeper.energy.learnt import LearntReadings
from wattkeeper.energy.model import EnergyModel
from wattkeeper.energy.next_readings import Suggestion
from wattkeeper.physics.profile import ServingProfile


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What is told."""

    service: str
    energy_model: str
    energy_problem: str
    """Why no trained energy model is in use here; empty with one."""
    kept_in: str
    """Where the readings are."""
    note: str
    """Why readings that are there are not used; empty where none are left out."""
    readings: tuple[Reading, ...]
    points: tuple[ReachablePoint, ...]
    half_width_log: float
    """Mean over the points, now."""
    suggestions: tuple[Suggestion, ...]


@explained
def calibrate(
    service: ServiceName,
    status: StatusFile = None,
    energy_model: ModelFile = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Annotated[Form, typer.Option(help="Form of the answer.")] = Form.TEXT,
) -> None:
    """Tell which one or two operating points to measure next, and what that is worth."""
    namespace, name = live_service.name_of(service)
    objects = (
        live_service.from_cluster(namespace, name, kubeconfig, context)
        if status is None
        else live_service.from_file(status)
    )
    found = advice(service, objects, EnergyModel.load_or_physics(energy_model))
    typer.echo(json.dumps(facts(found), indent=2) if output is Form.JSON else "\n".join(lines(found)))


def advice(service: str, objects: Sequence[dict[str, Any]], energy: EnergyModel) -> Advice:
    """Advice from the InferenceService and the ModelProfiles among `objects`.

    Raises WattkeeperError: the service is not among them, or its status does not tell what is needed.
    """
    spec, live, profile = live_service.parsed(service, objects)
    kept_by = live.profile.model_profile
    measured = None if profile is None or kept_by is None else (kept_by, profile.spec)
    serving = reachable.profile_of(spec, live, measured)
    points = reachable.points(spec, live, serving)
    if not points:
        raise WattkeeperError(
            f"no operating point of {service} meets its SLO with the bounds of its levers: see `wattkeeper explain`"
        )
    kept, note = kept_of(live, profile, serving, energy.version)
    readings = readings_of(kept)
    batch, weights = np.array([point.batch for point in points]), np.ones(len(points))
    kernel = energy.kernel_of(serving)
    return Advice(
        service=service,
        energy_model=energy.version,
        energy_problem=energy.problem,
        kept_in="status.memory" if profile is None else f"ModelProfile {kept_by}",
        note=note,
        readings=readings,
        points=tuple(points),
        half_width_log=next_readings.half_width_log(kernel, readings, batch, weights),
        suggestions=tuple(_worth_it(kernel, readings, points)),
    )


def _worth_it(
    kernel: CalibrationKernel, readings: Sequence[Reading], points: Sequence[ReachablePoint]
) -> Iterator[Suggestion]:
    """The suggestions that narrow the interval by a twentieth or more."""
    batch, weights = np.array([point.batch for point in points]), np.ones(len(points))
    easy = np.array([point.now for point in points])
    before = next_readings.half_width_log(kernel, readings, batch, weights)
    for suggestion in next_readings.suggest(kernel, readings, batch, weights, easy=easy, most=2):
        if suggestion.half_width_log > 0.95 * before:
            return
        before = suggestion.half_width_log
        yield suggestion


def kept_of(
    status: service_status.InferenceServiceStatus, owner: ModelProfile | None, profile: ServingProfile, version: str
) -> tuple[CalibrationStatus | None, str]:
    """What is kept of live readings for this service and energy model, and why others that are there are not used."""
    held = [] if owner is None else [*owner.status.calibrations]
    held += [status.memory.calibration] if status.memory.calibration is not None else []
    pair = Pair.of(profile, reachable.engine_of(status))
    problems = []
    for kept in held:
        if kept.kv_cache_dtype != pair.kv_cache_dtype:
            continue
        problem = calibrations.problem_of(kept, pair, version)
        if not problem:
            return kept, ""
        problems.append(problem)
    return None, "; ".join(sorted(set(problems)))


def readings_of(kept: CalibrationStatus | None) -> tuple[Reading, ...]:
    """Readings as the energy model conditions on them."""
    bins = LearntReadings.of([calibrations.bin_of(each) for each in ([] if kept is None else kept.readings)]).bins
    return tuple(Reading(batch=each.batch, error_log=each.error_log, weight=each.weight) for each in bins)


def lines(found: Advice) -> Iterator[str]:
    """The advice for people."""
    yield f"{found.service}: {found.energy_model}, readings in {found.kept_in}"
    if found.energy_problem:
        yield f"  power model:   physics alone, with wide intervals: {found.energy_problem}"
    if found.note:
        yield f"  note:          {found.note}"
    for index, reading in enumerate(found.readings):
        text = f"batch {reading.batch:.0f}: {math.exp(reading.error_log):.2f} times the model's watts"
        yield f"  {'measured:' if not index else '':<14} {text} (weight {reading.weight:.1f})"
    if not found.readings:
        yield "  measured:      nothing yet"
    batches = [point.batch for point in found.points]
    yield (
        f"  power known:   within {math.expm1(found.half_width_log):.1%} (90 %), over {len(found.points)} points that "
        f"the SLO allows, batches {min(batches):.0f} to {max(batches):.0f}"
    )
    for index, suggestion in enumerate(found.suggestions):
        point = found.points[suggestion.index]
        name = "measure next:" if not index else "and then:"
        yield (
            f"  {name:<14} batch {point.batch:.0f}: {_where(point)}; power is then known within "
            f"{math.expm1(suggestion.half_width_log):.1%}"
        )
    if not found.suggestions:
        yield "  measure next:  nothing, a further point would tell little"
        return
    yield "  The operator takes readings up by itself as traffic comes by. To go there now, pin the replicas for two"
    yield "  minutes with `kubectl scale wis NAME --replicas=N`; taking spec.replicas out hands them back to the plan."


def _where(point: ReachablePoint) -> str:
    replicas = f"{point.replicas} replica{'s' if point.replicas != 1 else ''}"
    rate = f"{point.requests_per_second:.3g} req/s"
    return f"{replicas} at {rate}, as now" if point.now else f"{replicas} when traffic is about {rate}"


def facts(found: Advice) -> dict[str, Any]:
    """The advice for programs; half-widths are relative."""
    return {
        "service": found.service,
        "energyModel": found.energy_model,
        "energyProblem": found.energy_problem,
        "keptIn": found.kept_in,
        "note": found.note,
        "readings": [vars(reading) for reading in found.readings],
        "halfWidth": math.expm1(found.half_width_log),
        "points": [vars(point) for point in found.points],
        "suggestions": [
            {**vars(found.points[each.index]), "halfWidth": math.expm1(each.half_width_log)}
            for each in found.suggestions
        ],
    }


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.command()(calibrate)
