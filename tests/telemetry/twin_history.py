"""A simulated service with what its exporters said at every scrape, and what was true."""

from dataclasses import dataclass, field

import numpy as np

from tests.telemetry.miniature import Miniature
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces import generate
from wattkeeper.traces.trace import RateSeries
from wattkeeper.twin import hardware
from wattkeeper.twin.exposition import VllmProfile, dcgm_text, vllm_text
from wattkeeper.twin.fleet import Fleet, Service
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory
from wattkeeper.twin.power_sensor import PowerFault, PowerSensor

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
EPOCH = 1_700_000_010
SCRAPE_SECONDS = 15


@dataclass(kw_only=True)
class Recorded:
    """`truth[pod]`: rows of (seconds since EPOCH, joules per GPU, tokens, sequence-seconds)."""

    store: Miniature
    seconds: int
    truth: dict[str, list[tuple[float, ...]]] = field(default_factory=dict)

    def between(self, pod, start, stop):
        """True watts per GPU, tokens per second and batch of a pod between two Unix times."""
        rows = np.array(self.truth[pod])
        low, high = (
            np.array([np.interp(at - EPOCH, rows[:, 0], rows[:, column]) for column in (1, 2, 3)])
            for at in (start, stop)
        )
        return (high - low) / (stop - start)


def record(
    rates,
    *,
    pods=2,
    gpus=1,
    fault=None,
    profile=VllmProfile.CURRENT,
    act=lambda at, fleet: None,
    hidden=lambda at: False,
    cached=0.0,
):
    """Play a service at rates ((seconds, requests per second), ...) and scrape it; `act` may do things to the fleet."""
    seconds = int(rates[-1][0])
    inventory = Inventory()
    inventory.ensure("node-0", hardware.card("h100"), pods * gpus + 1)
    fleet = Fleet(inventory)
    series = RateSeries(
        times_seconds=tuple(float(at) for at, _ in rates), requests_per_second=tuple(rate for _, rate in rates)
    )
    prompt, output = (LengthDistribution.lognormal(mean=mean, coefficient_of_variation=0.6) for mean in (500, 200))
    trace = generate.generate(series, prompt=prompt, output=output, seed=1)
    arrivals = trace.arrivals()
    if cached:
        arrivals = (each._replace(cached_tokens=int(cached * each.prompt_tokens)) for each in arrivals)
    fleet.services["chat"] = Service(
        name="chat", slo=SloTargets(ttft_seconds=0.5, tpot_seconds=0.05), arrivals=arrivals
    )
    engine = hardware.replica_hardware(
        model=MODEL, accelerator="h100", engine=EngineSettings(tensor_parallel_size=gpus)
    )
    for index in range(pods):
        key = ("team", f"chat-{index}")
        fleet.add_pod("chat", key, node="node-0", container="vllm", hardware=engine)
        fleet.set_ready("chat", key)
    sensor = PowerSensor(None if fault is None else PowerFault.parse(fault))
    found = Recorded(store=Miniature(), seconds=seconds)
    for at in range(0, seconds + 1, SCRAPE_SECONDS):
        fleet.advance(float(at))
        act(at, fleet)
        for (namespace, pod), member in fleet.services["chat"].members.items():
            if member.replica is None:
                continue
            counters = member.replica.counters
            found.truth.setdefault(pod, []).append(
                (at, member.energy_joules, counters.generation_tokens, counters.inter_token_seconds.total)
            )
            if not hidden(at):
                page = vllm_text(member.replica, model_name=MODEL, profile=profile)
                found.store.scrape(EPOCH + at, page, {"namespace": namespace, "pod": pod})
        samples = sensor.shown((gpu.sample() for gpu in inventory.all()), traffic_seconds=at)
        found.store.scrape(EPOCH + at, dcgm_text(samples), {"namespace": "monitoring", "pod": "dcgm-exporter-node-0"})
    return found
