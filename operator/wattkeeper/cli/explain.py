"""`wattkeeper explain`: why a live service is kept as it is, from what the operator writes into its status."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pydantic
import typer

from wattkeeper.api import service_status
from wattkeeper.api.conditions import Status
from wattkeeper.cli import explain_energy, explain_factors, live_service
from wattkeeper.cli.errors import explained
from wattkeeper.cli.live_service import Context, Form, Kubeconfig, ModelFile, ServiceName, StatusFile
from wattkeeper.domain.engine import EngineChange
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import Target
from wattkeeper.energy.model import EnergyModel
from wattkeeper.planner import words

_HEADINGS = ("change", "TTFT", "TPOT", "load", "verdict")
_UNBOUND = "without bound"


@explained
def explain(
    service: ServiceName,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    output: Annotated[Form, typer.Option(help="Form of the answer.")] = Form.TEXT,
    energy: Annotated[
        bool, typer.Option("--energy", help="Also tell what moves the watts from what is in place to the plan.")
    ] = False,
    factors: Annotated[
        bool,
        typer.Option("--factors", help="Also list every factor of energy: value and source, or why it is not known."),
    ] = False,
    pareto: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write energy against latency of all options: .png, .csv or .json."),
    ] = None,
    status_file: StatusFile = None,
    energy_model: ModelFile = None,
) -> None:
    """Tell why a service is kept as it is: the decision, what binds it, the check it passed, what would change it."""
    namespace, name = live_service.name_of(service)
    wanted = energy or pareto is not None
    objects = (
        live_service.from_cluster(namespace, name, kubeconfig, context, with_profile=wanted)
        if status_file is None
        else live_service.from_file(status_file)
    )
    live = live_service.service_in(service, objects)
    try:
        status = service_status.InferenceServiceStatus.model_validate(live.get("status") or {})
    except pydantic.ValidationError as error:
        raise WattkeeperError(f"the status of {service} is not of this version of wattkeeper: {error}") from error
    mode = (live.get("spec") or {}).get("mode", "")
    told = facts(service, mode, status)
    text = list(lines(service, mode, status))
    if doubt := explain_factors.uncertain(status.factors.untrained):
        told["untrained"] = explain_factors.untrained_facts(status.factors.untrained)
        text.append(_line("less certain", f"power in place: {doubt}"))
    energy_used = EnergyModel.load_or_physics(energy_model) if wanted or factors else EnergyModel.physics_only()
    if energy_used.problem:
        told["energyProblem"] = energy_used.problem
        text.append(_line("power model", f"physics alone, with wide intervals: {energy_used.problem}"))
    if factors:
        listed = explain_factors.told(status.factors, energy_used)
        told["factors"] = explain_factors.facts(status.factors, listed, energy_used)
        text += explain_factors.lines(status.factors, listed, energy_used)
    if wanted:
        found = explain_energy.explained(service, objects, energy_used)
        told["energy"] = explain_energy.facts(found)
        text += explain_energy.lines(found)
        if pareto is not None:
            text.append("  " + explain_energy.write(found, pareto))
    typer.echo(json.dumps(told, indent=2) if output is Form.JSON else "\n".join(text))


def facts(service: str, mode: str, status: service_status.InferenceServiceStatus) -> dict[str, Any]:
    """What is told, for programs: status without what is empty."""
    told = status.model_dump(by_alias=True, mode="json", include={"plan", "applied", "observed", "conditions"})
    found: dict[str, Any] = _bare({"service": service, "mode": mode, **told})
    return found


def lines(service: str, mode: str, status: service_status.InferenceServiceStatus) -> Iterator[str]:
    """The same for people."""
    plan = status.plan
    yield f"{service} ({mode}): {plan.reason or 'no plan yet'}"
    if plan.message:
        yield f"  {plan.message}"
    if plan.reason:
        yield from _decision(status)
        if plan.check is not None:
            yield from _check(plan.check)
    troubled = [item for item in status.conditions if item.status != Status.TRUE and item.type not in ("Conflict",)]
    troubled += [item for item in status.conditions if item.type == "Conflict" and item.status == Status.TRUE]
    for item in troubled:
        text = f": {item.message}" if item.message and item.message != plan.message else ""
        yield f"  {item.type + ':':<14} {item.status}, {item.reason}{text}"


def _decision(status: service_status.InferenceServiceStatus) -> Iterator[str]:
    plan, applied = status.plan, status.applied
    if applied.replicas is not None:
        ready = "" if applied.ready_replicas == applied.replicas else f", {applied.ready_replicas or 0} ready"
        watts = applied.power_cap_watts.requested
        yield _line("in place", _target(applied.replicas, watts, None) + ready)
    if plan.replicas is not None:
        change = plan.engine.model_dump(exclude_none=True)
        yield _line("target", _target(plan.replicas, plan.power_cap_watts, plan.clock_mhz, change))
    if plan.planned_qps is not None:
        observed = "" if status.observed.qps is None else f", {status.observed.qps:g} measured"
        yield _line("planned for", f"{plan.planned_qps:g} req/s{observed}")
    power = plan.predicted
    if power.power_watts is not None:
        between = ""
        if power.power_low_watts is not None and power.power_high_watts is not None:
            between = f" ({words.watts(power.power_low_watts)} to {words.watts(power.power_high_watts)})"
        yield _line("power", f"{words.watts(power.power_watts)} predicted{between}")
    yield _line("binding", plan.binding)
    if plan.runner_up:
        yield _line("runner-up", plan.runner_up)


def _check(check: service_status.CheckStatus) -> Iterator[str]:
    for name, latency in (("TTFT", check.ttft), ("TPOT", check.tpot)):
        if latency is None:
            continue
        margin = f" with {check.margin:.0%} margin" if check.margin is not None else " with margin"
        parts = [f"{latency.predicted or _UNBOUND} predicted", f"{latency.upper or _UNBOUND}{margin}"]
        if check.replay is not None and check.replay.requests:
            bound = latency.replayed_upper or _UNBOUND
            parts.append(f"{latency.replayed or _UNBOUND} replayed (at most {bound})")
        yield _line(f"{name} p{latency.percentile:g}", f"{', '.join(parts)}; target {latency.target}")
    if check.utilisation is not None and check.load_ceiling is not None:
        yield _line("load", f"{check.utilisation:.0%} of capacity, at most {check.load_ceiling:.0%}")
    if check.replay is not None:
        yield _line("replay", _replay(check.replay))
    if check.what_if:
        yield "  what if"
        rows = [_HEADINGS, *(_what_if(item) for item in check.what_if)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
        for row in rows:
            yield "    " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _replay(replay: service_status.ReplayCheckStatus) -> str:
    if replay.message:
        return f"{replay.standing}: {replay.message}"
    if not replay.requests:
        return replay.standing
    arrivals = "recorded arrivals" if replay.recorded else "arrivals made up from their dispersion"
    text = f"{replay.standing}: {replay.requests} requests of {arrivals} at {replay.qps:g} req/s on {replay.setting}"
    if replay.attainment is not None and replay.attainment_low is not None:
        text += f"; {replay.attainment:.1%} of them within the SLO (at least {replay.attainment_low:.1%})"
    if replay.preemptions_per_request:
        text += f"; {replay.preemptions_per_request:g} preemptions per request"
    return f"{text}; measured {replay.time}"


def _what_if(item: service_status.WhatIfStatus) -> tuple[str, ...]:
    load = "-" if item.utilisation is None else f"{item.utilisation:.0%}"
    verdict = f"violates {item.violates}" if item.violates else "feasible"
    return item.change, item.ttft or _UNBOUND, item.tpot or _UNBOUND, load, verdict


def _target(replicas: int, watts: float | None, clock_mhz: float | None, change: dict[str, Any] | None = None) -> str:
    target = Target(replicas=replicas, power_cap_watts=watts, clock_mhz=clock_mhz)
    return words.target(target, EngineChange(**change) if change else None)


def _line(name: str, text: str) -> str:
    return f"  {name + ':':<14} {text}"


def _bare(value: Any) -> Any:
    """Without what is absent or empty."""
    if isinstance(value, dict):
        inner = {name: _bare(item) for name, item in value.items()}
        return {name: item for name, item in inner.items() if item not in (None, "", {}, [])}
    if isinstance(value, list):
        return [_bare(item) for item in value]
    return value


def register(app: typer.Typer) -> None:
    """Add the sub-command."""
    app.command()(explain)
