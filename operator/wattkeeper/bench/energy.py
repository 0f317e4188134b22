"""What the energy model costs: loading it, and pricing the candidates of a fleet in one call, as a pass does.

Processor time of one core, the best of some rounds. Queries are those of the latency check's benchmark with the
predictions that it made for them; half of the services have readings of their own power.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from rich.table import Table

from wattkeeper.bench import sla as sla_bench
from wattkeeper.energy import artefact
from wattkeeper.energy.calibration import Calibration, Reading
from wattkeeper.energy.model import EnergyModel, EnergyQuery
from wattkeeper.queueing import sla

_READINGS = (Reading(batch=4.0, error_log=0.08), Reading(batch=32.0, error_log=0.05, weight=4.0))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One size of fleet."""

    services: int
    candidates: int
    """Of each service."""
    model_seconds: float
    """With the trained correction."""
    physics_seconds: float
    """The physical estimate alone, in the same run."""

    @property
    def microseconds_per_candidate(self) -> float:
        """Of the model."""
        return 1e6 * self.model_seconds / (self.services * self.candidates)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All of it."""

    file_bytes: int
    load_seconds: float
    costs: tuple[Cost, ...]


def measure(
    *, sizes: Sequence[tuple[int, int]] = ((1, 200), (100, 200), (1000, 30), (1000, 200)), rounds: int = 3
) -> Measured:
    """Fleets as (services, candidates of each). Raises ModelFileError: the shipped file cannot be used."""
    began = time.process_time()
    model = EnergyModel.load()
    loaded = time.process_time() - began
    physics = EnergyModel.physics_only()
    costs = []
    for services, candidates in sizes:
        queries = _queries(model, services, candidates)
        costs.append(
            Cost(
                services=services,
                candidates=candidates,
                model_seconds=sla_bench.best_seconds(partial(model.watts, queries), rounds),
                physics_seconds=sla_bench.best_seconds(partial(physics.watts, queries), rounds),
            )
        )
    return Measured(file_bytes=artefact.shipped_path().stat().st_size, load_seconds=loaded, costs=tuple(costs))


def _queries(model: EnergyModel, services: int, candidates: int) -> list[EnergyQuery]:
    asked = [sla_bench.query(index, candidates) for index in range(services)]
    made = [
        EnergyQuery(profile=query.profile, workload=query.workload, candidates=query.candidates, sla=prediction)
        for query, prediction in zip(asked, sla.predict_fleet(asked), strict=True)
    ]
    return [
        replace(query, calibration=Calibration(kernel=model.kernel, readings=_READINGS)) if index % 2 else query
        for index, query in enumerate(made)
    ]


def table(found: Measured) -> Table:
    """For people."""
    shown = Table(
        title="energy model, processor time",
        caption=f"file {found.file_bytes / 1e6:.2f} MB, loaded in {1e3 * found.load_seconds:.0f} ms",
    )
    for heading in ("services", "candidates of each", "model", "physics alone", "per candidate"):
        shown.add_column(heading, justify="right")
    for cost in found.costs:
        shown.add_row(
            f"{cost.services:,}",
            f"{cost.candidates:,}",
            f"{1e3 * cost.model_seconds:.0f} ms",
            f"{1e3 * cost.physics_seconds:.0f} ms",
            f"{cost.microseconds_per_candidate:.1f} us",
        )
    return shown
