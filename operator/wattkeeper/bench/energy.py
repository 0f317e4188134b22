"""What the energy predictions of a fleet cost: one call of the model for all services, as a planner's pass makes it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
_DRIFT_LOG = 0.1
_LOADS = 25
"""Different rates and lengths; services beyond that repeat them, and cost the model no less."""


@dataclass(frozen=True, kw_only=True)
class EnergyBench:
    """What was timed, and the size of the model file."""

    services: int
    candidates: int
    profiles: int
    energy_model: str
    model_bytes: int
    load_seconds: float
    first_seconds: float
    """Of a pass that knows none of the loads yet."""
    pass_seconds: tuple[float, ...]
    """Of passes after it; lengths of every service drift from one to the next."""
    processor_seconds: tuple[float, ...]
    """Of the same passes: less than their time where others kept the processor busy."""

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
        processor = statistics.median(self.processor_seconds)
        return (
            f"{self.services} services x {self.candidates} candidates of {self.profiles} profiles by "
            f"{self.energy_model}: {self.median_seconds:.3f} s a pass (fastest {min(self.pass_seconds):.3f}, slowest "
            f"{max(self.pass_seconds):.3f} of {len(self.pass_seconds)}; {processor:.3f} s "
            "of it on the processor), "
            f"{1e6 * self.median_seconds / predictions:.2f} us a prediction; first pass {self.first_seconds:.2f} s; "
            f"model file {self.model_bytes / 1e6:.2f} MB, loaded in {self.load_seconds:.2f} s"
        )


def run(*, services: int, candidates: int, repeats: int, tell: Callable[[str], None]) -> EnergyBench:
    """Time passes over made-up services on the calling thread; all on one thread."""
    begin = time.perf_counter()
    energy = EnergyModel.load()
    load_seconds = time.perf_counter() - begin
    tell("judging candidates")
    kinds = _queries(candidates)
    rng = np.random.default_rng(0)
    seconds, processor = [], []
    for number in range(repeats + 1):
        tell(f"pass {number} of {repeats}" if number else "first pass")
        drifted = [_drifted(kind, rng) for kind in kinds]
        asked = [drifted[index % len(drifted)] for index in range(services)]
        begin, used = time.perf_counter(), time.process_time()
        energy.watts(asked)
        seconds.append(time.perf_counter() - begin)
        processor.append(time.process_time() - used)
    return EnergyBench(
        services=services,
        candidates=candidates,
        profiles=len(_DEPLOYMENTS),
        energy_model=energy.version,
        model_bytes=artefact.shipped_path().stat().st_size,
        load_seconds=load_seconds,
        first_seconds=seconds[0],
        pass_seconds=tuple(seconds[1:]),
        processor_seconds=tuple(processor[1:]),
    )


def _drifted(query: EnergyQuery, rng: np.random.Generator) -> EnergyQuery:
    """The same service a while later: mean lengths a tenth or so longer or shorter."""
    prompt, output = np.exp(_DRIFT_LOG * rng.standard_normal(2))
    load = query.workload
    return replace(
        query,
        workload=replace(
            load,
            prompt=LengthDistribution.lognormal(mean=load.prompt.mean * prompt, coefficient_of_variation=1.0),
            output=LengthDistribution.lognormal(mean=load.output.mean * output, coefficient_of_variation=1.0),
        ),
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
        replicas=ones + index // len(_CAP_SHARES),
        power_cap_watts=profile.gpu.tdp_watts * _CAP_SHARES[index % len(_CAP_SHARES)],
        clock_ratio=ones,
        max_num_seqs=256.0 * ones,
        max_num_batched_tokens=8192.0 * ones,
        kv_capacity_tokens=profile.kv_capacity_tokens * ones,
    )
