"""Queries for tests: real profiles and candidates, with replica states as the test asks for them."""

from dataclasses import replace

import numpy as np

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.energy.model import EnergyQuery
from wattkeeper.physics import profiles, step
from wattkeeper.physics.profile import ServingProfile
from wattkeeper.queueing.types import Candidates, SlaPrediction

ESTIMATED = ("Qwen/Qwen3-14B", "nvidia-h100-sxm", 1)
FITTED = ("meta-llama/Llama-3.1-8B-Instruct", "nvidia-h100-sxm", 1)
OTHER_GPU = ("Qwen/Qwen3-14B", "nvidia-a100-sxm", 1)


def profile(model: str, accelerator: str, gpus: int) -> ServingProfile:
    engine = EngineSettings(tensor_parallel_size=gpus)
    return profiles.serving_profile(model=model, accelerator=accelerator, gpus_per_replica=gpus, engine=engine)


def workload(prompt: float = 400.0, output: float = 300.0) -> Workload:
    return Workload(
        requests_per_second=4.0, prompt=LengthDistribution.fixed(prompt), output=LengthDistribution.fixed(output)
    )


def query(
    served: ServingProfile, *, batch, busy=1.0, replicas=1.0, cap=np.nan, clock=1.0, load: Workload | None = None
) -> EnergyQuery:
    """Arguments broadcast to candidates; the step time is that of the profile at the clock."""
    batch, busy, replicas, cap, clock = (
        np.array(values, dtype=np.float64) for values in np.broadcast_arrays(batch, busy, replicas, cap, clock)
    )
    batch, busy, replicas, cap, clock = (np.atleast_1d(values) for values in (batch, busy, replicas, cap, clock))
    load = load or workload()
    prefill = batch * load.prompt.mean / load.output.mean
    kv = batch * (load.prompt.mean + load.output.mean / 2)
    seconds = step.step_seconds(
        served.iteration, prefill_tokens=prefill, decode_sequences=batch, kv_tokens=kv, clock_ratio=clock
    )
    ones = np.ones_like(batch)
    candidates = Candidates(
        replicas=replicas,
        power_cap_watts=cap,
        clock_ratio=clock,
        max_num_seqs=256.0 * ones,
        max_num_batched_tokens=2048.0 * ones,
        kv_capacity_tokens=served.kv_capacity_tokens * ones,
    )
    sla = SlaPrediction(
        stable=np.ones(len(batch), dtype=bool),
        capacity_rps=ones,
        utilisation=0.5 * ones,
        ttft_seconds=ones,
        tpot_seconds=seconds,
        ttft_upper_seconds=ones,
        tpot_upper_seconds=seconds,
        widening=0.0 * ones,
        batch=batch,
        busy=busy,
        step_seconds=seconds,
        kv_tokens=kv,
        clock_ratio=clock,
        prefill_tokens_per_second=prefill * busy / seconds,
        decode_tokens_per_second=batch * busy / seconds,
        preemption_risk=0.0 * ones,
        binding=np.full(len(batch), None, dtype=object),
    )
    return EnergyQuery(profile=served, workload=load, candidates=candidates, sla=sla)


def with_sla(asked: EnergyQuery, **changes) -> EnergyQuery:
    return replace(asked, sla=replace(asked.sla, **changes))
