"""Small stand-ins of the SLA check and the energy model, and builders of requests: fast, monotone, easy to follow.

One replica at full clock carries ten requests per second. TTFT and TPOT grow like 1/(1 - utilisation) and fall with the
clock. Watts are an idle part and a part that grows with the square root of the utilisation and the square of the clock.
"""

from dataclasses import replace

import numpy as np

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.observation import MetricsState, ServiceObservation
from wattkeeper.domain.plan import (
    Binding,
    EngineLever,
    LatencyTarget,
    Levers,
    RangeLever,
    ReplicaLever,
    Slo,
    Target,
)
from wattkeeper.domain.workload import LengthDistribution, Workload
from wattkeeper.energy.model import EnergyQuery, WattsPrediction
from wattkeeper.physics.profile import (
    EnergyCoefficients,
    GpuSpec,
    IterationCoefficients,
    Provenance,
    ServingProfile,
)
from wattkeeper.planner.types import PlanMemory, PlanRequest
from wattkeeper.queueing.types import Candidates, SlaPrediction, SlaQuery

NOW = 1_700_000_000.0
RATE_PER_REPLICA = 10.0

GPU = GpuSpec(
    name="test-gpu",
    aliases=(),
    memory_bytes=80e9,
    bandwidth_bytes_per_second=3.35e12,
    bf16_flops=990e12,
    tdp_watts=700.0,
    min_cap_watts=200.0,
    max_clock_mhz=1980.0,
    min_clock_mhz=345.0,
    idle_watts=70.0,
    source="test",
)


def make_profile(**changes):
    base = ServingProfile(
        model="test/Model-8B",
        gpu=GPU,
        gpus_per_replica=1,
        iteration=IterationCoefficients(
            d0_seconds=0.007,
            dt_seconds_per_token=25e-6,
            dkv_seconds_per_kv_token=5e-8,
            da_seconds_per_token_squared=0.0,
        ),
        energy=EnergyCoefficients(
            static_watts=130.0,
            idle_watts=115.0,
            e0_joules=2.2,
            et_joules_per_prefill_token=0.014,
            en_joules_per_decode=0.048,
            ekv_joules_per_kv_token=17e-6,
        ),
        kv_bytes_per_token=131072.0,
        kv_capacity_tokens=400_000.0,
        max_model_len=131072,
        parameters=8e9,
        activated_parameters=8e9,
        provenance=Provenance.FITTED,
        relative_error=0.05,
    )
    return replace(base, **changes)


WORKLOAD = Workload(
    requests_per_second=20.0,
    prompt=LengthDistribution.fixed(1000.0),
    output=LengthDistribution.fixed(200.0),
)


def each(check):
    """A check of one service as the planner wants it: of many."""

    def checked(queries: list[SlaQuery]) -> list[SlaPrediction]:
        return [
            check(
                query.profile,
                query.workload,
                query.candidates,
                ttft_percentile=query.ttft_percentile,
                tpot_percentile=query.tpot_percentile,
            )
            for query in queries
        ]

    return checked


def predict_one(profile, workload, candidates: Candidates, *, ttft_percentile, tpot_percentile) -> SlaPrediction:
    cap = np.where(np.isnan(candidates.power_cap_watts), profile.gpu.tdp_watts, candidates.power_cap_watts)
    clock = np.minimum(candidates.clock_ratio, np.clip((cap / profile.gpu.tdp_watts) ** 0.5, 0.2, 1.0))
    budget = 1.0 + 0.3 * (candidates.max_num_batched_tokens < 4096)
    per_replica = RATE_PER_REPLICA * clock * budget * np.minimum(1.0, candidates.kv_capacity_tokens / 100_000)
    capacity = per_replica * candidates.replicas
    load = workload.requests_per_second / capacity
    stable = load < 1.0
    room = np.where(stable, 1.0 - load, np.nan)
    spread = 1.0 + 0.2 * (float(workload.dispersion.at(1.0)) - 1.0)
    ttft = np.where(stable, 0.05 * spread / clock / room, np.inf)
    tpot = np.where(stable, 0.010 / clock / room, np.inf)
    busy = np.minimum(load, 1.0)
    ones = np.ones_like(load)
    return SlaPrediction(
        stable=stable,
        capacity_rps=capacity,
        utilisation=load,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        ttft_upper_seconds=ttft,
        tpot_upper_seconds=tpot,
        widening=0.0 * ones,
        batch=64 * busy,
        busy=busy,
        step_seconds=0.02 * ones,
        kv_tokens=50_000 * busy,
        clock_ratio=clock,
        prefill_tokens_per_second=1000 * ones,
        decode_tokens_per_second=1000 * ones,
        preemption_risk=0 * ones,
        binding=np.array([None if good else Binding.STABILITY for good in stable], dtype=object),
    )


predict = each(predict_one)


class FakeEnergy:
    """Counts its calls, as the fleet must be priced together."""

    def __init__(self):
        self.calls = 0

    def watts(self, queries: list[EnergyQuery]) -> list[WattsPrediction]:
        self.calls += 1
        answers = []
        for query in queries:
            gpus = query.candidates.replicas * query.profile.gpus_per_replica
            active = 585.0 * np.sqrt(query.sla.busy) * query.sla.clock_ratio**2
            watts = gpus * (query.profile.energy.idle_watts + active)
            answers.append(WattsPrediction(watts=watts, low_watts=0.9 * watts, high_watts=1.1 * watts))
        return answers


SLO = Slo(
    ttft=LatencyTarget(percentile=95, seconds=0.5),
    tpot=LatencyTarget(percentile=95, seconds=0.05),
)

LEVERS = Levers(
    replicas=ReplicaLever(minimum=1, maximum=12),
    power_cap=RangeLever(minimum=350, maximum=700, step=25),
)

CLOCK_LEVERS = replace(LEVERS, power_cap=None, clock_lock=RangeLever(minimum=900, maximum=1980, step=30))
REPLICA_LEVERS = Levers(replicas=ReplicaLever(minimum=1, maximum=12))
ENGINE_LEVERS = replace(LEVERS, engine=EngineLever(max_num_batched_tokens=(2048, 8192)))


def observation(*, rate=20.0, state=MetricsState.FRESH, **changes) -> ServiceObservation:
    values = {
        "time_seconds": NOW,
        "state": state,
        "age_seconds": 5.0,
        "workload": WORKLOAD.at_rate(rate),
        "running": rate,
        "waiting": 0.0,
        "preemptions_per_second": 0.0,
        "ttft_seconds": 0.2,
        "tpot_seconds": 0.02,
    }
    return ServiceObservation(**(values | changes))


def request(*, rate=20.0, stabilised=None, replicas=3, cap=None, clock=None, engine=None, **changes) -> PlanRequest:
    values = {
        "key": "test/chat",
        "now_seconds": NOW,
        "slo": SLO,
        "levers": LEVERS,
        "profile": make_profile(),
        "observation": observation(rate=rate),
        "planned_rate": rate,
        "planned_rate_stabilised": rate if stabilised is None else stabilised,
        "current": Target(
            replicas=replicas,
            power_cap_watts=cap,
            clock_mhz=clock,
            engine=engine or EngineSettings(max_num_seqs=256, max_num_batched_tokens=8192),
        ),
        "memory": PlanMemory(),
        "ready_replicas": replicas,
        "startup_seconds": 90.0,
    }
    return PlanRequest(**(values | changes))


def applied(asked: PlanRequest, plan, *, ready=True) -> PlanRequest:
    """The request after its plan was carried out; timers as they were."""
    added = (plan.target.replicas - asked.current.replicas) * asked.profile.gpus_per_replica
    return replace(
        asked,
        current=plan.target,
        free_gpus=None if asked.free_gpus is None else max(0, asked.free_gpus - added),
        ready_replicas=plan.target.replicas if ready else min(asked.ready_replicas, plan.target.replicas),
    )
