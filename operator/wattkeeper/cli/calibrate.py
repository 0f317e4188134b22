"""`wattkeeper calibrate`: which operating points of a live service teach the energy model most."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import typer
import yaml

from wattkeeper.api import inference_service as api
from wattkeeper.api import service_status
from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.api.calibration import CalibrationStatus
from wattkeeper.api.model_profile import ModelProfile
from wattkeeper.cli.errors import explained
from wattkeeper.cli.explain import Form
from wattkeeper.controller import calibrations, kube, reachable
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
    service: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME", help="The InferenceService.")],
    status: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Read objects from what `kubectl get wis,wmp -n NAMESPACE -o yaml` wrote, not from a cluster.",
        ),
    ] = None,
    energy_model: Annotated[
        Path | None, typer.Option(help="Model file, if the operator runs with another than the one it ships with.")
    ] = None,
    kubeconfig: Annotated[
        str | None, typer.Option(envvar="KUBECONFIG", help="Left out: the pod's ServiceAccount.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    output: Annotated[Form, typer.Option(help="Form of the answer.")] = Form.TEXT,
) -> None:
    """Tell which one or two operating points to measure next, and what that is worth."""
    namespace, separator, name = service.partition("/")
    if not separator or not namespace or not name:
        raise typer.BadParameter(f"{service!r} is not NAMESPACE/NAME", param_hint="NAMESPACE/NAME")
    objects = from_cluster(namespace, name, kubeconfig, context) if status is None else from_file(status)
    found = advice(service, objects, EnergyModel.load_or_physics(energy_model))
    typer.echo(json.dumps(facts(found), indent=2) if output is Form.JSON else "\n".join(lines(found)))


def advice(service: str, objects: Sequence[dict[str, Any]], energy: EnergyModel) -> Advice:
    """Advice from the InferenceService and the ModelProfiles among `objects`.

    Raises WattkeeperError: the service is not among them, or its status does not tell what is needed.
    """
    spec, live, profile = parsed(service, objects)
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


def parsed(
    service: str, objects: Sequence[dict[str, Any]]
) -> tuple[api.InferenceServiceSpec, service_status.InferenceServiceStatus, ModelProfile | None]:
    """Spec and status of the service, and the ModelProfile that keeps its readings.

    Raises WattkeeperError: the service is not among the objects, or one of them is of another version.
    """
    namespace, _, _ = service.partition("/")
    body = service_in(service, objects)
    try:
        live = service_status.InferenceServiceStatus.model_validate(body.get("status") or {})
        spec = api.InferenceServiceSpec.model_validate(body.get("spec") or {})
        kept_by = live.profile.model_profile
        owner = next((item for item in objects if _is(item, "ModelProfile", namespace, kept_by)), None)
        profile = None if owner is None else ModelProfile.model_validate({"status": {}, **owner})
    except pydantic.ValidationError as error:
        raise WattkeeperError(f"{service} or its ModelProfile is not of this version of wattkeeper: {error}") from error
    return spec, live, profile


def service_in(service: str, objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The InferenceService NAMESPACE/NAME among objects. Raises WattkeeperError: it is not among them."""
    namespace, _, name = service.partition("/")
    body = next((item for item in objects if _is(item, "InferenceService", namespace, name)), None)
    if body is None:
        raise WattkeeperError(f"there is no InferenceService {service} among {len(objects)} objects")
    return body


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


def _is(item: dict[str, Any], kind: str, namespace: str, name: str | None) -> bool:
    meta = item.get("metadata") or {}
    return (item.get("kind"), meta.get("namespace"), meta.get("name")) == (kind, namespace, name)


def from_cluster(
    namespace: str, name: str, kubeconfig: str | None, context: str | None, *, with_profile: bool = True
) -> list[dict[str, Any]]:
    """The InferenceService and, where wanted, the ModelProfile that keeps its readings."""
    api_server = kube.Kube(api=kube.load_client(kubeconfig, context))
    body = {**api_server.get(kube.service_path(namespace, name)), "kind": "InferenceService"}
    profile = ((body.get("status") or {}).get("profile") or {}).get("modelProfile")
    if profile is None or not with_profile:
        return [body]
    path = kube.path_of("modelprofiles", group=GROUP, version=VERSION, namespace=namespace, name=profile)
    return [body, {**api_server.get(path), "kind": "ModelProfile"}]


def from_file(path: Path) -> list[dict[str, Any]]:
    """All objects of a file that kubectl wrote. Raises WattkeeperError: it is none."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise WattkeeperError(
            f"{path} cannot be read as YAML or JSON: {why}. Write it with `kubectl get wis,wmp -n NAMESPACE -o yaml`"
        ) from error
    found: list[dict[str, Any]] = []
    for document in documents:
        if not isinstance(document, dict):
            raise WattkeeperError(f"{path} holds no Kubernetes object: write it with `kubectl get wis,wmp -o yaml`")
        found += document.get("items") or [document]
    return found


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.command()(calibrate)
