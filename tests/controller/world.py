"""A small cluster to try the controller on: API server, GPU node with agent, vLLM Deployment, settable metrics."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubernetes import client

from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.controller import cache
from wattkeeper.controller.clock import Clock, to_rfc3339
from wattkeeper.controller.kube import (
    Kube,
    KubeNotFoundError,
    node_power_cap_path,
    path_of,
    service_path,
    workload_path,
)
from wattkeeper.controller.measure import Measurements
from wattkeeper.controller.run import Operator, RunOptions
from wattkeeper.controller.settings import OperatorSettings, ReplaySettings
from wattkeeper.domain.errors import TelemetryError
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import GpuReading, KvCacheInfo, PodReading
from wattkeeper.telemetry.collector import Collector
from wattkeeper.telemetry.source import Snapshot

Object = dict[str, Any]
GPU = "NVIDIA-H100-80GB-HBM3"
_OURS = ("wattkeeper.io", "v1alpha1")
_GROUPS = {
    "inferenceservices": _OURS,
    "modelprofiles": _OURS,
    "nodepowercaps": _OURS,
    "deployments": ("apps", "v1"),
    "statefulsets": ("apps", "v1"),
    "horizontalpodautoscalers": ("autoscaling", "v2"),
    "pods": ("", "v1"),
    "nodes": ("", "v1"),
    "events": ("", "v1"),
}
_CLUSTER_SCOPED = ("nodepowercaps", "nodes")
_PLURALS = {
    "InferenceService": "inferenceservices",
    "ModelProfile": "modelprofiles",
    "NodePowerCap": "nodepowercaps",
    "Deployment": "deployments",
    "StatefulSet": "statefulsets",
    "HorizontalPodAutoscaler": "horizontalpodautoscalers",
}
BOUNDS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, math.inf)
TOKENS = (1.0, 10.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, math.inf)


def spread(bounds: tuple[float, ...], value: float, rate: float) -> Histogram:
    """All observations in the bucket that holds `value`."""
    return Histogram(
        upper_bounds=bounds, cumulative=tuple(rate if bound >= value else 0.0 for bound in bounds), total=value * rate
    )


class SettableSource:
    """A metrics source that says what the test wants."""

    def __init__(self) -> None:
        self.pods: dict[tuple[str, str], PodReading] = {}
        self.failure: str | None = None
        self.time: float | None = None

    def collect(self, now_seconds: float) -> Snapshot:
        if self.failure is not None:
            raise TelemetryError(self.failure)
        return Snapshot(time_seconds=self.time or now_seconds, pods=dict(self.pods))


def reading(namespace: str, pod: str, *, now: float = 0.0, **values: Any) -> PodReading:
    rate = values.pop("rate", 4.0)
    defaults: dict[str, Any] = {
        "age_seconds": 1.0,
        "running": 8.0 * rate / 4 if rate else 0.0,
        "waiting": 0.0,
        "kv_usage": 0.2,
        "finished_per_second": rate,
        "finished_requests": 1000.0 + rate * (now % 100_000),
        "in_system_growth_per_second": 0.0,
        "prompt_tokens_per_second": 600.0 * rate,
        "generation_tokens_per_second": 150.0 * rate,
        "preemptions_per_second": 0.0,
        "prefix_queries_per_second": 600.0 * rate,
        "prefix_hits_per_second": 0.0,
        "ttft_seconds": spread(BOUNDS, values.pop("ttft", 0.09), rate),
        "tpot_seconds": spread(BOUNDS, values.pop("tpot", 0.018), rate),
        "prompt_tokens": spread(TOKENS, 600.0, rate),
        "output_tokens": spread(TOKENS, 150.0, rate),
        "kv_cache": KvCacheInfo(num_gpu_blocks=26000, block_size=16, size_tokens=416000, cache_dtype="auto"),
        "gpus": (
            GpuReading(
                uuid=f"GPU-{pod}",
                node="gpu-0",
                power_watts=values.pop("watts", 190.0 + 40.0 * min(rate, 8.0)),
                sm_clock_mhz=1980.0,
            ),
        ),
    }
    return PodReading(namespace=namespace, pod=pod, **{**defaults, **values})


def deployment(
    namespace: str, name: str, *, replicas: int, pool: str, args: list[str] | None = None, **spec: Any
) -> Object:
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeSelector": {"pool": pool},
                    "terminationGracePeriodSeconds": 0,
                    "containers": [
                        {
                            "name": "vllm",
                            "image": "vllm/vllm-openai:v0.11.0",
                            "args": args
                            or [
                                "--model=meta-llama/Llama-3.1-8B-Instruct",
                                "--max-model-len=8192",
                                "--max-num-seqs=256",
                            ],
                            "resources": {"limits": {"nvidia.com/gpu": "1"}},
                        }
                    ],
                },
            },
            **spec,
        },
    }


def service(namespace: str, name: str = "chat", *, target: str = "chat", **spec: Any) -> Object:
    return {
        "apiVersion": "wattkeeper.io/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "targetRef": {"name": target},
            "slo": {"ttft": {"target": "500ms"}, "tpot": {"target": "50ms"}},
            "mode": "Enforce",
            "levers": {"replicas": {"min": 1, "max": 6}, "powerCap": {"min": "350W", "max": "700W"}},
            **spec,
        },
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """An API server whose workload controllers, scheduler and kubelets run."""

    name: str
    api: client.ApiClient
    kubeconfig: str
    add_gpu_node: Callable[..., Any]


@dataclasses.dataclass(kw_only=True)
class World:
    """One namespace and one GPU node of a cluster, an operator that is ticked by hand, and the metrics it sees.

    `advance` moves the operator's clock; the API server's own time stamps stay real.
    """

    cluster: Cluster
    speed_up: float = 1.0
    source: SettableSource = dataclasses.field(default_factory=SettableSource)
    settings: Object = dataclasses.field(default_factory=dict)
    offset: float = 0.0
    energy_model: Path | None = None

    def __post_init__(self) -> None:
        self.api = self.cluster.api
        self.namespace = f"w-{secrets.token_hex(4)}"
        self.node = f"gpu-{self.namespace}"
        self.kube = Kube(api=self.api)
        client.CoreV1Api(self.api).create_namespace({"metadata": {"name": self.namespace}})
        self.operator = self.new_operator()

    def now(self) -> float:
        return time.time() + self.offset

    def advance(self, seconds: float) -> None:
        """Let time pass for the operator, its metrics and the node's agent."""
        self.offset += seconds

    def new_operator(self) -> Operator:
        """An operator without Kopf and Lease; its loop is ticked by the test."""
        settings = {
            "namespaces": (self.namespace,),
            "default_source": MetricsSourceKind.PROMETHEUS,
            "speed_up": self.speed_up,
            "observed_refresh_seconds": 0.0,
            "replays": ReplaySettings(workers=0),
            **self.settings,
        }
        collector = Collector(self.source, 3600.0, clock=self.now)
        return Operator(
            RunOptions(
                api=self.api,
                settings=OperatorSettings(**settings),
                http_port=0,
                lease=False,
                energy_model=self.energy_model,
            ),
            Measurements(default=MetricsSourceKind.PROMETHEUS, prometheus=collector),
            clock=Clock(speed_up=self.speed_up, wall=self.now),
        )

    def start(self) -> None:
        self.operator.cache.start()

    def stop(self) -> None:
        self.operator.cache.stop()
        self.operator.http.stop()

    def restart(self) -> None:
        """The operator dies, and a new one starts: it knows what the cluster knows."""
        self.stop()
        self.operator = self.new_operator()
        self.start()

    def remove(self) -> None:
        """Delete everything."""
        custom, core = client.CustomObjectsApi(self.api), client.CoreV1Api(self.api)
        _gone(custom.delete_cluster_custom_object, "wattkeeper.io", "v1alpha1", "nodepowercaps", self.node)
        _gone(core.delete_node, self.node)
        _gone(core.delete_namespace, self.namespace)

    def tick(self, times: int = 1, *, every: float = 0.0) -> None:
        """Let the caches catch up, collect, and make a pass; `every` seconds pass before each."""
        for _ in range(times):
            self.advance(every)
            self.settle()
            self.operator.measurements.prometheus.collect_once()
            self.operator.loop.tick()
        self.settle()

    def wait_for(self, done: Callable[[], Any], seconds: float = 20.0) -> None:
        """Until `done`."""
        wait(done, seconds)

    def settle(self, timeout_seconds: float = 10.0) -> None:
        """Wait until the caches show what the API server has."""
        wait(lambda: not self._behind_kinds(), timeout_seconds, lambda: f"caches are behind: {self._behind_kinds()}")

    def _behind_kinds(self) -> list[str]:
        return [kind.plural for kind in cache.KINDS if self._behind(kind)]

    def _behind(self, kind: cache.Kind) -> bool:
        if not self.operator.cache.watches(kind) or kind is cache.NODES:
            return False
        namespace = self.namespace if kind.namespaced else None
        path = path_of(kind.plural, group=kind.group, version=kind.version, namespace=namespace)
        return _versions(self.kube.get(path)["items"]) != _versions(self.operator.cache.objects(kind))

    # objects

    def path(self, plural: str, name: str | None = None, *, sub: str = "") -> str:
        """API path of something in the world's namespace."""
        group, version = _GROUPS[plural]
        namespace = None if plural in _CLUSTER_SCOPED else self.namespace
        return path_of(plural, group=group, version=version, namespace=namespace, name=name, sub=sub)

    def create(self, body: Object) -> Object:
        return self.kube.create(self.path(_PLURALS[body["kind"]]), body)

    def patch(self, plural: str, name: str, body: Any, *, manager: str = "wattkeeper") -> Object:
        """Merge patch of an object."""
        request = self.api.param_serialize(
            "PATCH",
            self.path(plural, name),
            query_params=[("fieldManager", manager)],
            header_params={"Content-Type": "application/merge-patch+json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = self.api.call_api(*request)
        text = answer.read()
        assert 200 <= answer.status < 300, text
        return json.loads(text)

    def change(self, name: str = "chat", **spec: Any) -> None:
        """Edit the spec of the InferenceService."""
        self.patch("inferenceservices", name, {"spec": spec}, manager="kubectl")

    def delete(self, plural: str, name: str) -> None:
        request = self.api.param_serialize("DELETE", self.path(plural, name), auth_settings=["BearerToken"])
        self.api.call_api(*request).read()

    def fleet(self, *, replicas: int = 3, rate: float = 4.0, agent: bool = True, gpus: int = 8, **values: Any) -> None:
        """A node with its agent, and a Deployment whose pods are ready and have metrics."""
        self.add_node(gpus)
        self.deploy(deployment(self.namespace, "chat", replicas=replicas, pool=self.node))
        if agent:
            self.report_agent()
        self.measure(rate=rate, **values)

    def add_node(self, gpus: int = 8) -> None:
        self.cluster.add_gpu_node(self.node, gpu_product=GPU, count=gpus, labels={"pool": self.node})

    def cordon(self, *, on: bool = True) -> None:
        """New pods find no place."""
        self.patch("nodes", self.node, {"spec": {"unschedulable": on or None}}, manager="kubectl")

    def deploy(self, body: Object) -> None:
        """Create a workload and wait for its pods."""
        self.create(body)
        self.rolled_out(body["metadata"]["name"], plural=_PLURALS[body["kind"]])

    def rolled_out(self, name: str = "chat", *, plural: str = "deployments", seconds: float = 40.0) -> None:
        """Wait until the workload's controller is done."""
        wait(
            lambda: self._rolled_out(plural, name), seconds, lambda: f"{name}: {self.kube.get(self.path(plural, name))}"
        )

    def _rolled_out(self, plural: str, name: str) -> bool:
        live = self.kube.get(self.path(plural, name))
        status, wanted = live.get("status", {}), live["spec"]["replicas"]
        counts = [status.get(key, 0) for key in ("replicas", "readyReplicas", "updatedReplicas")]
        done = [item["reason"] for item in status.get("conditions", []) if item["type"] == "Progressing"]
        return (
            status.get("observedGeneration") == live["metadata"]["generation"]
            and counts == [wanted] * 3
            and len([pod for pod in self.pod_names() if pod.startswith(f"{name}-")]) == wanted
            and done in ([], ["NewReplicaSetAvailable"])
            and status.get("currentRevision") == status.get("updateRevision")
        )

    def pod_names(self) -> list[str]:
        listed = self.kube.get(self.path("pods"))["items"]
        return sorted(item["metadata"]["name"] for item in listed if not item["metadata"].get("deletionTimestamp"))

    def measure(self, *, rate: float = 4.0, **values: Any) -> None:
        """Give every pod metrics: `rate` requests per second each."""
        self.source.pods = {
            (self.namespace, pod): reading(self.namespace, pod, rate=rate, now=self.now(), **values)
            for pod in self.pod_names()
        }

    def report_agent(self, *, enforced: float | None = None, silent_seconds: float = 0.0) -> None:
        """What the node's agent would write: its GPUs, and that it obeys (or what it enforces instead)."""
        path = node_power_cap_path(self.node)
        try:
            live = self.kube.get(path)
        except KubeNotFoundError:
            body = {"apiVersion": "wattkeeper.io/v1alpha1", "kind": "NodePowerCap", "metadata": {"name": self.node}}
            live = self.create({**body, "spec": {"caps": []}})
        wanted = {entry["uuid"]: entry.get("watts") for entry in live["spec"].get("caps", [])}
        devices = []
        for pod in self.pod_names():
            uuid = f"GPU-{pod}"
            watts = wanted.get(uuid)
            device = {
                "uuid": uuid,
                "model": "NVIDIA H100 80GB HBM3",
                "pods": [f"{self.namespace}/{pod}"],
                "min": 200.0,
                "default": 700.0,
                "max": 700.0,
                "requested": watts,
                "clamped": None if watts is None else max(watts, 200.0),
                "enforced": enforced or watts or 700.0,
                "measured": 400.0,
            }
            devices.append({name: value for name, value in device.items() if value is not None})
        stamp = to_rfc3339(self.now() - silent_seconds)
        self.kube.patch(f"{path}/status", {"status": {"devices": devices, "heartbeat": stamp}})

    # what the operator did

    def status(self, name: str = "chat") -> Object:
        return self.kube.get(service_path(self.namespace, name)).get("status", {})

    def condition(self, type_: str, name: str = "chat") -> Object:
        found = [item for item in self.status(name).get("conditions", []) if item["type"] == type_]
        return found[0] if found else {"status": "absent", "reason": "", "message": ""}

    def said(self, type_: str, name: str = "chat") -> tuple[str, str]:
        """(status, reason) of a condition."""
        found = self.condition(type_, name)
        return found["status"], found["reason"]

    def target(self, name: str = "chat") -> Object:
        return self.kube.get(workload_path("Deployment", self.namespace, name))

    def container(self, name: str = "chat") -> Object:
        return self.target(name)["spec"]["template"]["spec"]["containers"][0]

    def replicas(self, name: str = "chat") -> int:
        return int(self.target(name)["spec"]["replicas"])

    def caps(self) -> list[Object]:
        """Entries on the world's node."""
        try:
            return list(self.kube.get(node_power_cap_path(self.node))["spec"].get("caps", []))
        except KubeNotFoundError:
            return []

    def watts(self) -> set[float | None]:
        """Limits asked for on the world's node."""
        return {entry.get("watts") for entry in self.caps()}

    def events(self) -> list[tuple[str, str]]:
        """(type, reason) of our own events."""
        listed = self.kube.get(self.path("events"))["items"]
        return [
            (item["type"], item["reason"]) for item in listed if item.get("source", {}).get("component") == "wattkeeper"
        ]

    def metric(self, name: str, service: str = "chat", **labels: str) -> float | None:
        """A series of the operator's own metrics."""
        where = {"namespace": self.namespace, "service": service, **labels}
        return self.operator.metrics.registry.get_sample_value(name, where)


def _versions(items: list[Object]) -> dict[str, str]:
    return {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in items}


def _gone(delete: Callable[..., Any], *arguments: str) -> None:
    try:
        delete(*arguments)
    except client.ApiException as error:
        if error.status != 404:
            raise


def wait(done: Callable[[], Any], seconds: float = 20.0, describe: Callable[[], object] | None = None) -> None:
    """Until `done`; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(str(describe() if describe else "it did not happen"))
        time.sleep(0.02)
