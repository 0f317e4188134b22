"""The history of a simulated replica, as its exporters would have told Prometheus."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.telemetry.run_history import GpuHistory, ReplicaHistory
from wattkeeper.traces import generate
from wattkeeper.traces.trace import RateSeries
from wattkeeper.twin import hardware
from wattkeeper.twin.fleet import Fleet, Member, Service
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory

STEP_SECONDS, SCRAPES_PER_STEP = 30, 2
_LENGTH_VARIATION = 0.8


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one replica: requests per second that swing between two rates, and mean lengths."""

    hours: float
    rates: tuple[float, float]
    swing_hours: float = 4.0
    """From the lower rate to the higher and back."""
    prompt_tokens: float = 600.0
    output_tokens: float = 200.0
    prefix_hit_ratio: float = 0.0
    """Share of each prompt that is in the prefix cache, 0..1."""


@dataclass(frozen=True, kw_only=True)
class Cards:
    """What serves, and how many times the power of the twin's tables it draws."""

    model: str
    accelerator: str
    bias: float


def simulated(traffic: Traffic, cards: Cards, *, seed: int) -> ReplicaHistory:
    """The history of one replica under traffic."""
    seconds = traffic.hours * 3600.0
    model, accelerator = cards.model, cards.accelerator
    inventory = Inventory()
    inventory.ensure("node", hardware.card(accelerator), 1)
    fleet = Fleet(inventory)
    times = np.linspace(0.0, seconds, int(traffic.hours * 12) + 1)
    low, high = traffic.rates
    swing = 0.5 - 0.5 * np.cos(2.0 * np.pi * times / (traffic.swing_hours * 3600.0))
    prompt, output = (
        LengthDistribution.lognormal(mean=mean, coefficient_of_variation=_LENGTH_VARIATION)
        for mean in (traffic.prompt_tokens, traffic.output_tokens)
    )
    trace = generate.generate(
        RateSeries(
            times_seconds=tuple(map(float, times)), requests_per_second=tuple(map(float, low * (high / low) ** swing))
        ),
        prompt=prompt,
        output=output,
        seed=seed,
        prefix_hit_ratio=traffic.prefix_hit_ratio,
    )
    key = ("team", "chat-0")
    service = Service(name="chat", slo=SloTargets(ttft_seconds=1.0, tpot_seconds=0.1), arrivals=trace)
    fleet.services["chat"] = service
    engine = hardware.replica_hardware(model=model, accelerator=accelerator, engine=EngineSettings())
    fleet.add_pod("chat", key, node="node", container="vllm", hardware=engine)
    fleet.set_ready("chat", key)
    member = service.members[key]
    steps = int(seconds // STEP_SECONDS)
    engine_rows, gpu_rows = [], []
    for step in range(steps + 1):
        samples = []
        for scrape in range(SCRAPES_PER_STEP):
            fleet.advance(max(0.0, (step - 1 + (scrape + 1) / SCRAPES_PER_STEP) * STEP_SECONDS))
            samples.append(_gpu(member))
        engine_rows.append(_engine(member))
        gpu_rows.append({name: float(np.mean([each[name] for each in samples])) for name in samples[0]})
    engine_table, gpu_table = pd.DataFrame(engine_rows), pd.DataFrame(gpu_rows)
    at = STEP_SECONDS * np.arange(steps + 1, dtype=np.float64)
    gpu = GpuHistory(
        uuid="GPU-0",
        model=hardware.card(accelerator).dcgm_name,
        watts=cards.bias * gpu_table["watts"].to_numpy(),
        clock_mhz=gpu_table["clock_mhz"].to_numpy(),
        limit_watts=gpu_table["limit_watts"].to_numpy(),
        utilisation=gpu_table["utilisation"].to_numpy(),
    )
    return ReplicaHistory(
        namespace=key[0],
        pod=key[1],
        times_seconds=at,
        scraped_seconds=at,
        engine={str(name): engine_table[name].to_numpy(dtype=np.float64) for name in engine_table},
        gpus=(gpu,),
    )


def _engine(member: Member) -> dict[str, float]:
    """What the engine's page says now, by the names of `domain.observation.EngineCounters`."""
    replica, counters = member.replica, member.counters
    if replica is None or counters is None:
        raise ValueError("the replica does not listen yet")
    return {
        "running": float(len(replica.running)),
        "waiting": float(len(replica.waiting)),
        "kv_usage": replica.kv_usage,
        "finished_requests": float(sum(counters.finished.values())),
        "prompt_tokens": float(counters.prompt_tokens),
        "cached_prompt_tokens": float(counters.cached_prompt_tokens),
        "generation_tokens": float(counters.generation_tokens),
        "preemptions": float(counters.preemptions),
        "inter_token_seconds_sum": counters.inter_token_seconds.total,
        "inter_token_count": float(counters.inter_token_seconds.count),
        "iteration_count": float(counters.iteration_tokens.count),
    }


def _gpu(member: Member) -> dict[str, float]:
    sample = member.gpus[0].sample()
    return {
        "watts": sample.power_watts,
        "clock_mhz": sample.sm_clock_mhz,
        "limit_watts": sample.limit_watts,
        "utilisation": sample.utilisation,
    }
