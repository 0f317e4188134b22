"""A fixed fleet, played as fast as the machine allows: the counterfactual of what a static deployment would use."""

from dataclasses import dataclass

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.traces.trace import Trace
from wattkeeper.twin import hardware
from wattkeeper.twin.fleet import Fleet, Service
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory
from wattkeeper.twin.timeline import Timeline

STEP_SECONDS = 30.0
SETTLE_SECONDS = 120.0
"""After the end of the traffic, so that requests in flight can finish."""


@dataclass(frozen=True, kw_only=True)
class StaticRun:
    """A service as it stood at the end of the run, and its course."""

    service: Service
    timeline: Timeline
    energy_joules: float
    """From the first arrival to the end of the traffic."""


def play_static(
    *,
    trace: Trace,
    replicas: int,
    model: str,
    accelerator: str,
    engine: EngineSettings,
    slo: SloTargets,
    cap_watts: float | None = None,
    clock_mhz: float | None = None,
    interval_seconds: float = 600.0,
) -> StaticRun:
    """Play a trace against `replicas` replicas that never change."""
    spec = hardware.replica_hardware(model=model, accelerator=accelerator, engine=engine)
    inventory = Inventory()
    inventory.ensure("static", spec.card, replicas * spec.gpus)
    fleet = Fleet(inventory)
    service = Service(name="static", slo=slo, arrivals=trace.arrivals())
    fleet.services[service.name] = service
    for index in range(replicas):
        key = ("static", f"replica-{index}")
        fleet.add_pod(service.name, key, node="static", container="vllm", hardware=spec)
        fleet.set_ready(service.name, key)
    for gpu in inventory.all():
        fleet.set_power(gpu, watts=cap_watts, clock_mhz=clock_mhz)
    timeline = Timeline(service=service, interval_seconds=interval_seconds)
    while fleet.now < trace.span_seconds:
        fleet.advance(min(fleet.now + STEP_SECONDS, trace.span_seconds))
        timeline.observe(fleet)
    energy = service.energy_joules
    fleet.advance(trace.span_seconds + SETTLE_SECONDS)
    return StaticRun(service=service, timeline=timeline, energy_joules=energy)
