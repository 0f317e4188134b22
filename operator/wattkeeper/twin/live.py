"""The live twin: simulated vLLM pods that follow what stands in a Kubernetes API.

Every scheduled pod that a service's selector matches becomes a replica with the engine arguments of its own spec; it
serves once the API calls it Ready, drains when it is deleted, and holds GPUs of its node. GPU nodes, and power limits
from NodePowerCap objects, are read the same way; like a node agent the twin reports what it enforces in their status.
Simulated time runs `speed` times as fast as the wall clock: counters and joules grow that much faster, while watts and
latencies are those of the simulated world. Expiry of power caps is judged by the wall clock.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from wattkeeper.actuators import engine_args
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.traces.trace import Trace
from wattkeeper.twin import hardware
from wattkeeper.twin.agent import NodeAgent
from wattkeeper.twin.exposition import VllmProfile, dcgm_text, vllm_text
from wattkeeper.twin.fleet import Fleet, Phase, PodKey, Service
from wattkeeper.twin.kube import Json, Mirror
from wattkeeper.twin.ledger import SloTargets
from wattkeeper.twin.nodes import Inventory, NoFreeGpuError
from wattkeeper.twin.power_sensor import PowerFault, PowerSensor
from wattkeeper.twin.timeline import Point, Timeline

LOGGER = logging.getLogger(__name__)
GPU_RESOURCE = "nvidia.com/gpu"
GPU_LABEL = "nvidia.com/gpu.product"
DEFAULT_GRACE_SECONDS = 30.0
SYNC_TIMEOUT_SECONDS = 30.0
LONGEST_STEP_SECONDS = 30.0
"""Of simulated time between two looks at the API, when the twin has to catch up."""


@dataclass(frozen=True, kw_only=True)
class LiveService:
    """Which pods serve which traffic."""

    namespace: str
    name: str
    selector: dict[str, str]
    model: str
    trace: Trace
    slo: SloTargets
    container: str | None = None
    profile: VllmProfile = VllmProfile.CURRENT

    @property
    def key(self) -> str:
        """Name inside the fleet."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Account:
    """Energy and GPU time of a service's pods over its traffic, and its course."""

    energy_joules: float
    gpu_seconds: float
    points: tuple[Point, ...]


class LiveTwin:
    """Runs the simulation in a thread of its own; also what the exporter shows (a MetricsView)."""

    def __init__(
        self,
        api: client.ApiClient,
        services: Sequence[LiveService],
        *,
        speed: float = 1.0,
        tick_seconds: float = 0.05,
        sample_seconds: float = 300.0,
        default_accelerator: str = "h100-sxm",
        power_fault: PowerFault | None = None,
    ) -> None:
        if speed <= 0:
            raise ValueError("speed must be positive")
        self._speed, self._tick_seconds = speed, tick_seconds
        self._default_accelerator = default_accelerator
        self.power_sensor = PowerSensor(power_fault)
        """What the GPU pages show; the account of the twin stays true."""
        self._services = {service.key: service for service in services}
        core = client.CoreV1Api(api)
        self._pods = Mirror("pods", core.list_pod_for_all_namespaces)
        self._nodes = Mirror("nodes", core.list_node)
        self._agent = NodeAgent(api)
        self._seen_versions = (-1, -1)
        self._failed: dict[PodKey, str] = {}
        self._postponed = False
        """A pod waits for GPUs that another one still drains on."""
        self._owners: dict[PodKey, str] = {}
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="twin", daemon=True)
        self._began_wall: float | None = None
        self._accounts: dict[str, Account] = {}
        self.lag_seconds = self.largest_lag_seconds = 0.0
        """Simulated seconds behind the clock: now, and at most since the traffic began."""
        self.fleet = Fleet(Inventory(power_window_seconds=max(1.0, speed * tick_seconds)))
        self.timelines: dict[str, Timeline] = {}
        for service in services:
            simulated = Service(name=service.key, slo=service.slo, arrivals=service.trace.arrivals())
            simulated.start_seconds = float("inf")
            self.fleet.services[service.key] = simulated
            self.timelines[service.key] = Timeline(service=simulated, interval_seconds=sample_seconds)

    # Life

    def start(self) -> None:
        """Read the API once and let simulated time run. Traffic waits for `start_traffic`."""
        mirrors = (self._pods, self._nodes, *self._agent.mirrors)
        for mirror in mirrors:
            mirror.start()
        for mirror in mirrors:
            if not mirror.wait_synced(SYNC_TIMEOUT_SECONDS):
                self.stop()
                raise WattkeeperError(
                    f"the Kubernetes API did not list what the twin needs within {SYNC_TIMEOUT_SECONDS:.0f} s: is it "
                    "reachable, and are the CRDs installed?"
                )
        self._began_wall = time.monotonic()
        self._thread.start()

    def start_traffic(self) -> None:
        """Let every trace begin now."""
        with self._lock:
            for key, service in self.fleet.services.items():
                service.begin(self.fleet.now)
                self.timelines[key].begin(self.fleet.now)
            self.largest_lag_seconds = 0.0

    def stop(self) -> None:
        """End the simulation; raises what ended it, if it failed."""
        self._stop.set()
        for mirror in (self._pods, self._nodes, *self._agent.mirrors):
            mirror.stop()
        if self._thread.is_alive():
            self._thread.join(timeout=SYNC_TIMEOUT_SECONDS)
        self.check()

    def check(self) -> None:
        """Raise WattkeeperError where the simulation thread has died."""
        if self._error is not None:
            raise WattkeeperError(f"the twin stopped: {self._error}") from self._error

    @property
    def lock(self) -> threading.RLock:
        """Hold it to read the fleet from another thread."""
        return self._lock

    @property
    def failed_pods(self) -> dict[PodKey, str]:
        """Pods whose engine could not start, and why."""
        return dict(self._failed)

    def traffic_seconds(self) -> float:
        """Simulated seconds since the traffic began; 0 before."""
        start = min((service.start_seconds for service in self.fleet.services.values()), default=float("inf"))
        return max(0.0, self.fleet.now - start)

    def ready_count(self, key: str) -> int:
        """Pods of a service that take requests."""
        with self._lock:
            return len(self.fleet.services[key].ready())

    # The simulation

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._tick_seconds):
                self.step()
        except Exception as error:
            self._error = error
            LOGGER.exception("the twin stopped")

    def step(self) -> None:
        """Follow the API and catch up with simulated time, at most LONGEST_STEP_SECONDS of it per look."""
        while not self._stop.is_set():
            with self._lock:
                target = self._target_seconds()
                self._follow()
                self._advance(min(target, self.fleet.now + LONGEST_STEP_SECONDS))
                for timeline in self.timelines.values():
                    timeline.observe(self.fleet)
                self.lag_seconds = max(0.0, target - self.fleet.now)
                self.largest_lag_seconds = max(self.largest_lag_seconds, self.lag_seconds)
            self._agent.report(self.fleet.inventory)
            if self.lag_seconds < LONGEST_STEP_SECONDS:
                return

    def _target_seconds(self) -> float:
        """Where simulated time should be now."""
        if self._began_wall is None:
            return 0.0
        return (time.monotonic() - self._began_wall) * self._speed

    def _advance(self, until: float) -> None:
        """Move the fleet, and close the account of every service whose traffic ends on the way."""
        for key, service in self.fleet.services.items():
            end = service.start_seconds + self._services[key].trace.span_seconds
            if self.fleet.now < end <= until:
                self.fleet.advance(end)
                self._accounts[key] = Account(
                    energy_joules=service.energy_joules,
                    gpu_seconds=service.gpu_seconds,
                    points=tuple(self.timelines[key].points),
                )
        self.fleet.advance(until)

    def account(self, key: str) -> "Account | None":
        """What a service used from the beginning to the end of its traffic; None until the traffic has ended."""
        with self._lock:
            return self._accounts.get(key)

    def _follow(self) -> None:
        versions = (self._pods.version, self._nodes.version)
        if versions != self._seen_versions or self._postponed:
            self._seen_versions, self._postponed = versions, False
            self._follow_nodes(self._nodes.objects())
            self._follow_pods(self._pods.objects())
        self._agent.enforce(self.fleet)

    def _follow_nodes(self, nodes: dict[tuple[str, str], Json]) -> None:
        for (_, name), node in nodes.items():
            count = int((node.get("status", {}).get("allocatable") or {}).get(GPU_RESOURCE, 0))
            if count:
                label = (node["metadata"].get("labels") or {}).get(GPU_LABEL, self._default_accelerator)
                self.fleet.inventory.ensure(name, hardware.card(label), count)

    def _follow_pods(self, pods: dict[PodKey, Json]) -> None:
        for key, pod in pods.items():
            if key not in self._owners:
                self._adopt(key, pod)
            owner = self._owners.get(key)
            if owner is None or key not in self.fleet.services[owner].members:
                continue
            if pod["metadata"].get("deletionTimestamp"):
                self._drain(owner, key, pod)
            elif _is_ready(pod):
                self.fleet.set_ready(owner, key)
        for key, owner in list(self._owners.items()):
            if key not in pods:
                members = self.fleet.services[owner].members
                if key not in members:
                    del self._owners[key]
                elif members[key].phase is not Phase.DRAINING:
                    self._drain(owner, key, {})
        for key in [key for key in self._failed if key not in pods]:
            del self._failed[key]

    def _adopt(self, key: PodKey, pod: Json) -> None:
        node = pod["spec"].get("nodeName")
        owner = next((s for s in self._services.values() if _matches(s, key, pod)), None)
        if owner is None or not node or key in self._failed or pod["metadata"].get("deletionTimestamp"):
            return
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return
        nodes = self.fleet.inventory.nodes
        accelerator = nodes[node][0].card.name if nodes.get(node) else self._default_accelerator
        try:
            engine = engine_args.read_engine(pod["spec"], owner.container)
            spec = hardware.replica_hardware(model=owner.model, accelerator=accelerator, engine=engine)
            self.fleet.add_pod(owner.key, key, node=node, container=_container(owner, pod), hardware=spec)
        except NoFreeGpuError:
            self._postponed = True
            return
        except WattkeeperError as error:
            self._failed[key] = str(error)
            LOGGER.warning("pod %s/%s does not start: %s", *key, error)
            return
        self._owners[key] = owner.key

    def _drain(self, owner: str, key: PodKey, pod: Json) -> None:
        grace = pod.get("spec", {}).get("terminationGracePeriodSeconds")
        self.fleet.remove_pod(owner, key, grace_seconds=DEFAULT_GRACE_SECONDS if grace is None else float(grace))

    # What the exporter shows

    def pod_keys(self) -> Sequence[PodKey]:
        """Pods whose engine listens: ready ones and draining ones."""
        with self._lock:
            return [
                key
                for service in self.fleet.services.values()
                for key, member in service.members.items()
                if member.replica is not None
            ]

    def node_names(self) -> Sequence[str]:
        """Nodes with GPUs."""
        with self._lock:
            return sorted(self.fleet.inventory.nodes)

    def pod_text(self, namespace: str, pod: str) -> str | None:
        """Metrics page of one engine; None while it does not listen."""
        with self._lock:
            owner = self._owners.get((namespace, pod))
            member = self.fleet.services[owner].members.get((namespace, pod)) if owner else None
            if owner is None or member is None or member.replica is None:
                return None
            self._catch_up()
            live = self._services[owner]
            return vllm_text(member.replica, model_name=live.model, profile=live.profile)

    def node_text(self, node: str) -> str | None:
        """GPU page of one node."""
        with self._lock:
            gpus = self.fleet.inventory.nodes.get(node)
            self._catch_up()
            if not gpus:
                return None
            samples = (gpu.sample() for gpu in gpus)
            return dcgm_text(self.power_sensor.shown(samples, traffic_seconds=self.traffic_seconds()))

    def _catch_up(self) -> None:
        """A page shows this very moment, not the last tick: rates over short windows would be off by a tick."""
        if self._thread.is_alive():
            self._advance(min(self._target_seconds(), self.fleet.now + LONGEST_STEP_SECONDS))

    def own_text(self) -> str:
        """The twin about itself and about what only clients of the services could know."""
        with self._lock:
            lines = [
                "# TYPE wattkeeper_twin_simulated_seconds counter",
                f"wattkeeper_twin_simulated_seconds {self.fleet.now!r}",
                "# TYPE wattkeeper_twin_lag_seconds gauge",
                f"wattkeeper_twin_lag_seconds {self.lag_seconds!r}",
                "# TYPE wattkeeper_twin_requests_total counter",
            ]
            for service in self.fleet.services.values():
                counts = service.ledger.attainment()
                label = f'service="{service.name}"'
                for outcome in ("arrived", "finished", "lost", "met"):
                    value = getattr(counts, outcome)
                    lines.append(f'wattkeeper_twin_requests_total{{{label},outcome="{outcome}"}} {value}')
            return "\n".join(lines) + "\n"


def for_deployment(
    api: client.ApiClient,
    name: str,
    *,
    model: str,
    trace: Trace,
    slo: SloTargets,
    profile: VllmProfile = VllmProfile.CURRENT,
) -> LiveService:
    """The service of a Deployment given as namespace/name, with the selector that it has in the API."""
    namespace, slash, deployment = name.partition("/")
    if not (namespace and slash and deployment):
        raise WattkeeperError(f"{name!r} names no Deployment: write namespace/name")
    try:
        found = client.AppsV1Api(api).read_namespaced_deployment(deployment, namespace)
    except client.ApiException as error:
        raise WattkeeperError(f"Deployment {name} cannot be read: {error.reason}") from error
    return LiveService(
        namespace=namespace,
        name=deployment,
        selector=dict(found.spec.selector.match_labels or {}),
        model=model,
        trace=trace,
        slo=slo,
        profile=profile,
    )


def _matches(service: LiveService, key: PodKey, pod: Json) -> bool:
    labels: dict[str, Any] = pod["metadata"].get("labels") or {}
    return key[0] == service.namespace and all(labels.get(name) == value for name, value in service.selector.items())


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _container(service: LiveService, pod: Json) -> str:
    return service.container or str(pod["spec"]["containers"][0]["name"])
