<<<<<<< HEAD
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
=======
"""What the energy predictions of a fleet cost: one call of the model for all services, as a planner's pass makes it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.energy import artefact
from wattkeeper.energy.model import EnergyModel
from wattkeeper.energy.points import EnergyQuery
from wattkeeper.physics import profiles
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing import sla
from wattkeeper.queueing.types import Candidates, SlaQuery

GOAL_SECONDS = 0.5
"""For 1,000 services with 200 candidates each, on one core."""
GOAL_BYTES = 5_000_000
_DEPLOYMENTS = (
    ("meta-llama/Llama-3.1-8B-Instruct", "nvidia-h100-sxm", 1),
    ("Qwen/Qwen3-14B", "nvidia-h100-sxm", 1),
    ("Qwen/Qwen3-32B", "nvidia-h100-sxm", 2),
    ("meta-llama/Llama-3.1-70B-Instruct", "nvidia-h100-sxm", 4),
    ("meta-llama/Llama-3.1-70B-Instruct", "nvidia-b200", 2),
    ("Qwen/Qwen3-30B-A3B-Instruct-2507", "nvidia-h100-sxm", 1),
    ("openai/gpt-oss-120b", "nvidia-h100-sxm", 2),
    ("Qwen/Qwen3-14B", "nvidia-a100-sxm", 1),
)
_CAP_SHARES = np.linspace(0.5, 1.0, 10)
_LOADS = 25
"""Different rates and lengths; services beyond that repeat them, and cost the model no less."""


@dataclass(frozen=True, kw_only=True)
class EnergyBench:
    """Seconds of one pass, of all repeats and per prediction; bytes of the model file."""

    services: int
    candidates: int
    profiles: int
    energy_model: str
    model_bytes: int
    load_seconds: float
    pass_seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        """Of the passes."""
        return statistics.median(self.pass_seconds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "median_seconds": self.median_seconds}

    def line(self) -> str:
        """For people."""
        predictions = self.services * self.candidates
        return (
            f"{self.services} services x {self.candidates} candidates of {self.profiles} profiles by "
            f"{self.energy_model}: {self.median_seconds:.3f} s a pass (fastest {min(self.pass_seconds):.3f}, slowest "
            f"{max(self.pass_seconds):.3f} of {len(self.pass_seconds)}), "
            f"{1e6 * self.median_seconds / predictions:.2f} us a prediction; model file {self.model_bytes / 1e6:.2f} "
            f"MB, loaded in {self.load_seconds:.2f} s"
        )


def run(*, services: int, candidates: int, repeats: int, tell: Callable[[str], None]) -> EnergyBench:
    """Time passes over made-up services on the calling thread; the model's trees run on one thread."""
    begin = time.perf_counter()
    energy = EnergyModel.load()
    load_seconds = time.perf_counter() - begin
    tell("judging candidates")
    kinds = _queries(candidates)
    asked = [kinds[index % len(kinds)] for index in range(services)]
    passes = []
    for number in range(repeats):
        tell(f"pass {number + 1} of {repeats}")
        begin = time.perf_counter()
        energy.watts(asked)
        passes.append(time.perf_counter() - begin)
    return EnergyBench(
        services=services,
        candidates=candidates,
        profiles=len(_DEPLOYMENTS),
        energy_model=energy.version,
        model_bytes=artefact.shipped_path().stat().st_size,
        load_seconds=load_seconds,
        pass_seconds=tuple(passes),
    )


def _queries(candidates: int) -> list[EnergyQuery]:
    """Every deployment at every load, judged as a planner would; caps times replica counts around what is needed."""
    found = []
    for model, gpu, gpus in _DEPLOYMENTS:
        profile = profiles.serving_profile(
            model=model, accelerator=gpu, gpus_per_replica=gpus, engine=EngineSettings(tensor_parallel_size=gpus)
        )
        table = _candidates(profile, candidates)
        workloads = [
            Workload(
                requests_per_second=0.5 * 1.25**load,
                prompt=LengthDistribution.lognormal(mean=200.0 + 150.0 * (load % 7), coefficient_of_variation=1.0),
                output=LengthDistribution.lognormal(mean=100.0 + 90.0 * (load % 5), coefficient_of_variation=1.0),
            )
            for load in range(_LOADS)
        ]
        judged = sla.predict_fleet(
            [
                SlaQuery(
                    profile=profile, workload=each, candidates=table, ttft_percentile=95.0, tpot_percentile=95.0
                )
                for each in workloads
            ]
        )  # fmt: skip
        found += [
            EnergyQuery(profile=profile, workload=workload, candidates=table, sla=answer)
            for workload, answer in zip(workloads, judged, strict=True)
        ]
    return found


def _candidates(profile: ServingProfile, count: int) -> Candidates:
    index = np.arange(count)
    ones = np.ones(count)
    return Candidates(
        replicas=1.0 + index // len(_CAP_SHARES),
        power_cap_watts=profile.gpu.tdp_watts * _CAP_SHARES[index % len(_CAP_SHARES)],
        clock_ratio=ones,
        max_num_seqs=256.0 * ones,
        max_num_batched_tokens=8192.0 * ones,
        kv_capacity_tokens=profile.kv_capacity_tokens * ones,
    )
>>>>>>> dexplain2
