"""A small cluster to try the controller on: API server, GPU node with agent, vLLM Deployment, settable metrics."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

from kubernetes import client

from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.controller import cache
from wattkeeper.controller.clock import to_rfc3339
from wattkeeper.controller.kube import Kube, node_power_cap_path, path_of, service_path, workload_path
from wattkeeper.controller.measure import Measurements
from wattkeeper.controller.run import Operator, RunOptions
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.domain.errors import TelemetryError
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import GpuReading, KvCacheInfo, PodReading
from wattkeeper.telemetry.collector import Collector
from wattkeeper.telemetry.source import Snapshot

Object = dict[str, Any]
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


def reading(namespace: str, pod: str, **values: Any) -> PodReading:
    rate = values.pop("rate", 4.0)
    defaults: dict[str, Any] = {
        "age_seconds": 1.0,
        "running": 8.0 * rate / 4 if rate else 0.0,
        "waiting": 0.0,
        "kv_usage": 0.2,
        "finished_per_second": rate,
        "finished_requests": 1000.0 + rate * (time.time() % 100_000),
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
            GpuReading(uuid=f"GPU-{pod}", node="gpu-0", power_watts=values.pop("watts", 450.0), sm_clock_mhz=1980.0),
        ),
    }
    return PodReading(namespace=namespace, pod=pod, **{**defaults, **values})


def deployment(namespace: str, name: str, *, replicas: int, args: list[str] | None = None, **spec: Any) -> Object:
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
                    "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
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


@dataclasses.dataclass(kw_only=True)
class World:
    """One namespace of an API server, an operator that is ticked by hand, and the metrics it sees."""

    api: client.ApiClient
    namespace: str
    speed_up: float = 1.0
    source: SettableSource = dataclasses.field(default_factory=SettableSource)
    settings: Object = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kube = Kube(api=self.api)
        self.node = f"gpu-{self.namespace}"
        self.operator = self.new_operator()

    def new_operator(self) -> Operator:
        """An operator without Kopf and Lease; its loop is ticked by the test."""
        collector = Collector(self.source, 3600.0)
        return Operator(
            RunOptions(
                api=self.api,
                settings=OperatorSettings(
                    namespaces=(self.namespace,),
                    default_source=MetricsSourceKind.PROMETHEUS,
                    speed_up=self.speed_up,
                    observed_refresh_seconds=0.0,
                    **self.settings,
                ),
                http_port=0,
                lease=False,
            ),
            Measurements(default=MetricsSourceKind.PROMETHEUS, prometheus=collector),
        )

    def start(self) -> None:
        self.operator.cache.start()

    def stop(self) -> None:
        self.operator.cache.stop()
        self.operator.http.stop()

    def tick(self, times: int = 1) -> None:
        """Let the caches catch up, collect, and make a pass."""
        for _ in range(times):
            self.settle()
            self.operator.measurements.prometheus.collect_once()
            self.operator.loop.tick()
        self.settle()

    def settle(self, timeout_seconds: float = 10.0) -> None:
        """Wait until the caches show what the API server has."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            behind = [kind.plural for kind in cache.KINDS if self._behind(kind)]
            if not behind:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"caches are behind: {behind}")
            time.sleep(0.02)

    def _behind(self, kind: cache.Kind) -> bool:
        if not self.operator.cache.watches(kind):
            return False
        namespace = self.namespace if kind.namespaced else None
        path = path_of(kind.plural, group=kind.group, version=kind.version, namespace=namespace)
        live = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in self.kube.get(path)["items"]}
        known = {
            item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in self.operator.cache.objects(kind)
        }
        return live != known

    # objects

    def create(self, body: Object) -> Object:
        group, _, version = body["apiVersion"].rpartition("/")
        plural = {
            "InferenceService": "inferenceservices", "Deployment": "deployments", "Pod": "pods", "Node": "nodes",
            "NodePowerCap": "nodepowercaps", "HorizontalPodAutoscaler": "horizontalpodautoscalers",
            "ModelProfile": "modelprofiles",
        }[body["kind"]]  # fmt: skip
        namespace = body["metadata"].get("namespace")
        return self.kube.create(path_of(plural, group=group, version=version, namespace=namespace), body)

    def fleet(self, *, replicas: int = 3, rate: float = 4.0, agent: bool = True, **values: Any) -> None:
        """A node, its agent's report, a Deployment and its ready pods, each with metrics."""
        self.add_node()
        self.create(deployment(self.namespace, "chat", replicas=replicas))
        self.pods("chat", replicas)
        if agent:
            self.report_agent()
        self.measure(rate=rate, **values)

    def add_node(self, gpus: int = 8) -> None:
        node = self.create(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": self.node,
                    "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
                    "annotations": {"kwok.x-k8s.io/node": "none"},
                },
                "spec": {"taints": [{"key": "test", "value": "only", "effect": "NoSchedule"}]},
            }
        )
        self.kube.patch(
            f"/api/v1/nodes/{node['metadata']['name']}/status",
            {"status": {"allocatable": {"nvidia.com/gpu": str(gpus)}}},
        )

    def pods(self, name: str, count: int, *, first: int = 0) -> None:
        for index in range(first, first + count):
            self.create(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": f"{name}-{index}", "namespace": self.namespace, "labels": {"app": name}},
                    "spec": {
                        "nodeName": self.node,
                        "terminationGracePeriodSeconds": 0,
                        "containers": [
                            {"name": "vllm", "image": "v", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
                        ],
                    },
                }
            )
            self.kube.patch(
                path_of("pods", group="", version="v1", namespace=self.namespace, name=f"{name}-{index}", sub="status"),
                {
                    "status": {
                        "phase": "Running",
                        "podIP": f"10.1.0.{index + 1}",
                        "conditions": [
                            {"type": "Ready", "status": "True", "lastTransitionTime": to_rfc3339(time.time())}
                        ],
                    }
                },
            )
        self.roll(name)

    def delete_pod(self, name: str) -> None:
        client.CoreV1Api(self.api).delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)

    def roll(self, name: str = "chat", **status: Any) -> None:
        """Report the Deployment as fully rolled out (or as `status` says)."""
        path = workload_path("Deployment", self.namespace, name)
        live = self.kube.get(path)
        count = live["spec"]["replicas"]
        whole = {
            "observedGeneration": live["metadata"]["generation"],
            "replicas": count,
            "updatedReplicas": count,
            "readyReplicas": count,
            "availableReplicas": count,
        }
        self.kube.patch(f"{path}/status", {"status": {**whole, **status}})

    def pod_names(self) -> list[str]:
        listed = self.kube.get(path_of("pods", group="", version="v1", namespace=self.namespace))["items"]
        return sorted(item["metadata"]["name"] for item in listed)

    def measure(self, *, rate: float = 4.0, **values: Any) -> None:
        """Give every pod metrics: `rate` requests per second each."""
        self.source.pods = {
            (self.namespace, pod): reading(self.namespace, pod, rate=rate, **values) for pod in self.pod_names()
        }

    def report_agent(self, *, enforced: float | None = None, heartbeat: float | None = None) -> None:
        """What the node's agent would write: its GPUs, and that it obeys."""
        path = node_power_cap_path(self.node)
        try:
            live = self.kube.get(path)
        except Exception:
            live = self.create(
                {
                    "apiVersion": "wattkeeper.io/v1alpha1",
                    "kind": "NodePowerCap",
                    "metadata": {"name": self.node},
                    "spec": {"caps": []},
                }
            )
        wanted = {entry["uuid"]: entry.get("watts") for entry in live["spec"].get("caps", [])}
        devices = [
            {
                "uuid": f"GPU-{pod}",
                "model": "NVIDIA H100 80GB HBM3",
                "pods": [f"{self.namespace}/{pod}"],
                "min": 200.0,
                "default": 700.0,
                "max": 700.0,
                "requested": wanted.get(f"GPU-{pod}"),
                "clamped": wanted.get(f"GPU-{pod}"),
                "enforced": enforced or wanted.get(f"GPU-{pod}") or 700.0,
                "measured": 400.0,
            }
            for pod in self.pod_names()
        ]
        devices = [{name: value for name, value in device.items() if value is not None} for device in devices]
        stamp = to_rfc3339(heartbeat if heartbeat is not None else time.time())
        self.kube.patch(f"{path}/status", {"status": {"devices": devices, "heartbeat": stamp}})

    # what the operator did

    def status(self, name: str = "chat") -> Object:
        return self.kube.get(service_path(self.namespace, name)).get("status", {})

    def condition(self, type_: str, name: str = "chat") -> Object:
        found = [item for item in self.status(name).get("conditions", []) if item["type"] == type_]
        return found[0] if found else {"status": "absent", "reason": "", "message": ""}

    def target(self, name: str = "chat") -> Object:
        return self.kube.get(workload_path("Deployment", self.namespace, name))

    def caps(self) -> list[Object]:
        return self.kube.get(node_power_cap_path(self.node))["spec"].get("caps", [])

    def events(self) -> list[tuple[str, str]]:
        listed = self.kube.get(path_of("events", group="", version="v1", namespace=self.namespace))["items"]
        return [(item["type"], item["reason"]) for item in listed]
