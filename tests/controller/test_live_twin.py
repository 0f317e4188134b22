"""Must-show 5 of the energy model: a biased sensor is learnt, a broken one is not believed, and nobody's SLO suffers.

The operator's own loop, scraper and status on the embedded API beside the live twin, whose exporters are made to lie.
Simulated and operator time are moved by hand, 15 s per pass, with a scrape every 5 s.
"""

from __future__ import annotations

import dataclasses
import math
import time

import pytest
from kubernetes import client

from tests.controller.world import GPU, deployment, service
from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.controller.clock import Clock
from wattkeeper.controller.kube import Kube, path_of, service_path
from wattkeeper.controller.measure import Measurements, ScrapeAddresses
from wattkeeper.controller.run import Operator, RunOptions
from wattkeeper.controller.settings import OperatorSettings, ReplaySettings
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.telemetry.collector import Collector
from wattkeeper.telemetry.scrape import ScrapeSource
from wattkeeper.traces import generate
from wattkeeper.traces.trace import RateSeries
from wattkeeper.twin.exporter import Exporter
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.live import LiveService, LiveTwin
from wattkeeper.twin.power_sensor import PowerFault

TICK, SCRAPE = 15.0, 5.0
NAMESPACE, KEY = "live", "live/chat"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PROFILE = {
    "apiVersion": "wattkeeper.io/v1alpha1",
    "kind": "ModelProfile",
    "metadata": {"name": "llama-h100", "namespace": NAMESPACE},
    "spec": {"model": MODEL, "accelerator": "h100-sxm"},
}


class HandTwin(LiveTwin):
    """A twin whose time is moved by the test."""

    simulated = 0.0

    def _target_seconds(self) -> float:
        return self.simulated


def traffic():
    """Half an hour up and down between 6 and 14 requests per second, again and again."""
    times = tuple(60.0 * index for index in range(181))
    rates = tuple(10.0 + 4.0 * math.sin(2.0 * math.pi * at / 1800.0) for at in times)
    series = RateSeries(times_seconds=times, requests_per_second=rates)
    lengths = {
        "prompt": LengthDistribution.lognormal(mean=600, coefficient_of_variation=0.8),
        "output": LengthDistribution.lognormal(mean=150, coefficient_of_variation=0.8),
    }
    return generate.generate(series, seed=5, **lengths)


@dataclasses.dataclass
class Live:
    """A service on the twin, and the operator that keeps it."""

    kube: Kube
    twin: HandTwin
    operator: Operator
    collector: Collector
    offset: float = 0.0
    begin: float = dataclasses.field(default_factory=time.time)

    def now(self) -> float:
        return self.begin + self.offset

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            for _ in range(round(TICK / SCRAPE)):
                self.offset += SCRAPE
                self.twin.simulated = self.offset
                self.twin.step()
                self.collector.collect_once()
            self.operator.loop.tick()

    @property
    def state(self):
        return self.operator.loop.states[NAMESPACE, "chat"]

    def trust(self):
        conditions = self.kube.get(service_path(NAMESPACE, "chat"))["status"]["conditions"]
        found = next(item for item in conditions if item["type"] == "ModelTrusted")
        return found["status"], found["reason"], found.get("message", "")

    def counts(self):
        return self.twin.fleet.services[KEY].ledger.attainment()

    def profile(self):
        path = path_of(
            "modelprofiles", group="wattkeeper.io", version="v1alpha1", namespace=NAMESPACE, name="llama-h100"
        )
        return self.kube.get(path)

    def factor(self) -> float:
        """What the watts are multiplied with at the batch that was measured last, as ModelProfile keeps it."""
        kept = self.profile()["status"]["calibrations"][0]["readings"]
        last = max(kept, key=lambda item: (item["time"], item["weight"]))
        return math.exp(last["errorLog"])

    def lie(self, text: str | None) -> None:
        self.twin.power_sensor.fault = None if text is None else PowerFault.parse(text)


@pytest.fixture
def live(cluster):
    if cluster.name != "embedded":
        pytest.skip("time is moved by hand, which a real cluster does not follow")
    api = cluster.api
    core, kube = client.CoreV1Api(api), Kube(api=api)
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    cluster.add_gpu_node("live-node", gpu_product=GPU, count=8, labels={"pool": "live-node"})
    apps = client.AppsV1Api(api)
    apps.create_namespaced_deployment(NAMESPACE, deployment(NAMESPACE, "chat", replicas=2, pool="live-node"))
    wanted = service(NAMESPACE, levers={"replicas": {"min": 1, "max": 4}})
    kube.create(path_of("inferenceservices", group="wattkeeper.io", version="v1alpha1", namespace=NAMESPACE), wanted)
    kube.create(path_of("modelprofiles", group="wattkeeper.io", version="v1alpha1", namespace=NAMESPACE), PROFILE)
    simulated = LiveService(
        namespace=NAMESPACE, name="chat", selector={"app": "chat"}, model=MODEL, trace=traffic(),
        slo=SloTargets(ttft_seconds=0.5, tpot_seconds=0.05),
    )  # fmt: skip
    twin = HandTwin(api, [simulated], tick_seconds=5.0)
    twin.start()
    exporter = Exporter(twin)
    exporter.start()
    made = []

    def now():
        return made[0].now() if made else time.time()

    source = ScrapeSource(clock=now)
    collector = Collector(source, 3600.0, clock=now)
    operator = Operator(
        RunOptions(
            api=api,
            settings=OperatorSettings(
                namespaces=(NAMESPACE,),
                default_source=MetricsSourceKind.SCRAPE,
                observed_refresh_seconds=0.0,
                replays=ReplaySettings(workers=0),
            ),
            http_port=0,
            lease=False,
        ),
        Measurements(
            default=MetricsSourceKind.SCRAPE,
            scrape=collector,
            scrape_source=source,
            addresses=ScrapeAddresses(
                pod_url=f"{exporter.url}/pods/{{namespace}}/{{pod}}/metrics",
                gpu_url=f"{exporter.url}/nodes/{{node}}/metrics",
            ),
        ),
        clock=Clock(wall=now),
    )
    made.append(Live(kube=kube, twin=twin, operator=operator, collector=collector))
    operator.cache.start()
    end = time.monotonic() + 20
    while twin.ready_count(KEY) < 2 and time.monotonic() < end:
        twin.step()
        time.sleep(0.05)
    operator.loop.tick()  # tells the scraper where to look
    twin.start_traffic()
    yield made[0]
    operator.cache.stop()
    operator.http.stop()
    exporter.stop()
    twin.stop()
    core.delete_node("live-node")
    core.delete_namespace(NAMESPACE)


def test_a_bias_of_a_quarter_is_learnt_within_twenty_ticks_and_trusted(live):
    live.tick(30)
    assert live.trust()[0] == "True"
    assert live.factor() == pytest.approx(1.0, abs=0.03)
    live.lie("scale=1.25")
    for _ in range(20):
        live.tick()
        assert live.trust()[0] == "True"
    assert live.factor() == pytest.approx(1.25, abs=0.04)


def test_a_bias_from_the_start_is_learnt_from_the_first_reading(live):
    live.lie("scale=1.25")
    live.tick(2)
    assert live.factor() == pytest.approx(1.25, abs=0.06)
    for _ in range(20):
        live.tick()
        assert live.trust()[0] == "True"
    assert live.factor() == pytest.approx(1.25, abs=0.03)


def test_a_bias_that_grows_slowly_is_followed(live):
    live.tick(20)
    for index in range(50):
        live.lie(f"scale={1.0 + 0.005 * (index + 1)}")
        live.tick()
        assert live.trust()[0] == "True"
    assert live.factor() == pytest.approx(1.25, abs=0.05)


WINDOW = 4
"""Ticks that a scraped exporter is averaged over."""
FAULTS = [
    ("zero", "PowerSensorZero", 2 + WINDOW),
    ("scale=2", "PowerSensorAboveLimit", 2 + WINDOW),
    ("scale=0.5", "PowerSensorJumped", 4 + WINDOW),  # a refit meanwhile costs two ticks
    ("missing", "PowerSensorMissing", 4 + 2 * WINDOW),
    ("stuck", "PowerSensorStuck", 60),
]


@pytest.mark.parametrize(("fault", "reason", "within"), FAULTS, ids=[name for name, *_ in FAULTS])
def test_a_broken_sensor_turns_model_trusted_off_and_hurts_nobody(live, fault, reason, within):
    live.tick(30)
    before, learnt = live.counts(), live.factor()
    live.lie(fault)
    seen = []
    while len(seen) < within and reason not in seen:
        live.tick()
        seen.append(live.trust()[1])
    status, said, message = live.trust()
    assert (status, said) == ("False", reason), seen
    assert "Nothing is learnt" in message
    live.tick(10)
    assert live.trust()[0] == "False"
    # The first part of a fault that creeps in through an average is small enough to be a bias.
    assert live.factor() == pytest.approx(learnt, abs=0.05)
    after = live.counts()
    served = after.finished - before.finished
    assert (after.met - before.met) / served >= 0.99
    assert after.lost == before.lost
    live.lie(None)
    live.tick(4 + 2 * WINDOW)
    assert live.trust()[0] == "True"
