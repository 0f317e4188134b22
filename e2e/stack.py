"""Wattkeeper as users run it, on a cluster: CRDs and RBAC of manifests/, operator, simulated vLLM fleet, Prometheus.

    with Stack(cluster) as stack:
        stack.install()
        stack.add_gpu_nodes("gpu-0")
        stack.create_namespace("llm")
        stack.apply(deployment("llm", replicas=4), service("llm"))
        stack.wait_ready("llm", "chat")
        stack.start_twin("llm/chat", arguments=["--rate=8"])
        stack.start_prometheus()
        stack.start_operator()

The operator is a process of its own and has the rights of its ServiceAccount, nothing more. Pods are scheduled and
rolled out by the cluster's own controllers; the twin plays their engines and GPUs, and Prometheus scrapes it.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import types
import urllib.error
import urllib.request
from typing import Any, Self

from e2e.cluster import base, kwok, processes, prometheus

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPERATOR_NAMESPACE = "wattkeeper-system"
GPU_PRODUCT = "NVIDIA-H100-80GB-HBM3"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
SERVICES = "inferenceservices.wattkeeper.io"
POWER_CAPS = "nodepowercaps.wattkeeper.io"
Object = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast simulated time runs, and how often things look at it. Durations are wall time in seconds."""

    speed_up: float = 20.0
    tick: float = 1.0
    collect_interval: float = 0.5
    rate_window: float = 5.0
    length_window: float = 15.0
    cap_ttl: float = 20.0


class Stack:
    """All parts but the cluster. Leaving the block ends the processes and removes what was made in the cluster."""

    def __init__(self, cluster: base.Cluster, *, pace: Pace | None = None) -> None:
        self.cluster = cluster
        self.pace = pace or Pace()
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="wattkeeper-stack-"))
        self.twin_url = ""
        self._processes = processes.Processes(directory=self.directory)
        self._prometheus: prometheus.Prometheus | None = None
        self._namespaces: list[str] = []
        self.nodes: list[str] = []
        """Simulated nodes of this stack."""
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if error is not None:
            print(self.log_tails(), file=sys.stderr)
        self.stop()

    def check(self) -> None:
        """Raise ProcessExitedError if a process that should run has ended."""
        self._processes.check()

    def log_tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {path.name}\n{_readable(path)}" for path in sorted(self.directory.glob("*.log")))

    def stop(self) -> None:
        """End the processes and remove namespaces and nodes that were made. Safe to call twice."""
        self._processes.stop()
        for namespace in self._namespaces:
            self.cluster.kubectl("delete", SERVICES, "--all", f"--namespace={namespace}", "--wait=false")
            for name in self.names(SERVICES, namespace):  # no operator is left to take the finalizers off
                free = '{"metadata": {"finalizers": null}}'
                where = f"--namespace={namespace}"
                self.cluster.kubectl("patch", SERVICES, name, where, "--type=merge", f"--patch={free}")
            self.cluster.kubectl("delete", "namespace", namespace, "--wait=false")
        if self._prometheus is not None:
            self._prometheus.stop()
        if self.nodes:
            self.cluster.kubectl("delete", "nodes", *self.nodes, "--ignore-not-found", "--wait=false")
            self.cluster.kubectl("delete", POWER_CAPS, *self.nodes, "--ignore-not-found", "--wait=false")
        self._namespaces, self.nodes = [], []
        shutil.rmtree(self.directory, ignore_errors=True)

    # The cluster's part

    def install(self) -> None:
        """CRDs, namespace, ServiceAccount and RBAC, as `kubectl apply -k manifests/base` brings them."""
        self.cluster.apply_crds(ROOT / "crds")
        self.install_rights()

    def install_rights(self) -> None:
        """Namespace, ServiceAccount and RBAC, without the CRDs."""
        for name in ("namespace.yaml", "rbac.yaml"):
            self.cluster.apply(ROOT / "manifests" / "base" / name)

    def create_namespace(self, name: str) -> str:
        """A namespace that goes with the stack."""
        self.cluster.kubectl("create", "namespace", name)
        self._namespaces.append(name)
        return name

    def add_gpu_nodes(
        self, *names: str, count: int = 8, product: str = GPU_PRODUCT, labels: dict[str, str] | None = None
    ) -> None:
        """Simulated nodes that go with the stack."""
        for name in names:
            self.nodes.append(name)
            self.cluster.add_gpu_node(name, gpu_product=product, count=count, labels=labels)

    def apply(self, *objects: Object) -> None:
        """Apply objects."""
        self.cluster.apply(*objects)

    def get(self, resource: str, name: str, namespace: str | None = None) -> Object:
        """One object."""
        return self.cluster.get(resource, name, *([f"--namespace={namespace}"] if namespace else []))

    def names(self, resource: str, namespace: str) -> list[str]:
        """Names of all objects of a kind."""
        listed = self.cluster.get(resource, f"--namespace={namespace}")["items"]
        return [item["metadata"]["name"] for item in listed]

    def wait_ready(self, namespace: str, *deployments: str, timeout_seconds: float = 60.0) -> None:
        """Wait until the Deployments' pods are ready."""
        for name in deployments:
            where, limit = f"--namespace={namespace}", f"--timeout={timeout_seconds:g}s"
            self.cluster.kubectl("rollout", "status", f"deployment/{name}", where, limit)

    # The twin and Prometheus

    def start_twin(self, *deployments: str, arguments: collections.abc.Sequence[str] = ()) -> None:
        """`wattkeeper twin` for Deployments given as namespace/name; more arguments say which traffic."""
        port = processes.free_port()
        self.twin_url = f"http://127.0.0.1:{port}"
        self._start(
            "twin",
            "twin",
            *(f"--deployment={name}" for name in deployments),
            f"--model={MODEL}",
            f"--kubeconfig={self.cluster.kubeconfig}",
            f"--speed={self.pace.speed_up:g}",
            f"--port={port}",
            *arguments,
        )
        self.wait(lambda: _http(f"{self.twin_url}/metrics")[0] == 200, "the twin's metrics")

    def start_prometheus(self) -> prometheus.Prometheus:
        """Prometheus, which finds the simulated pods and GPU exporters through the twin's target lists."""
        self._prometheus = prometheus.Prometheus(
            [
                prometheus.http_targets("vllm", f"{self.twin_url}/sd/vllm"),
                prometheus.http_targets("dcgm", f"{self.twin_url}/sd/dcgm"),
                prometheus.static_targets("twin", self.twin_url.removeprefix("http://")),
            ],
        ).start()
        return self._prometheus

    @property
    def prometheus(self) -> prometheus.Prometheus:
        """The running Prometheus."""
        if self._prometheus is None:
            raise RuntimeError("Prometheus was not started")
        return self._prometheus

    # The operator

    def start_operator(
        self,
        name: str = "operator",
        *,
        kubeconfig: pathlib.Path | None = None,
        arguments: collections.abc.Sequence[str] = (),
        wait: bool = True,
    ) -> None:
        """`wattkeeper run` as the ServiceAccount of manifests/; with `wait`, until it has made a first pass."""
        if kubeconfig is None:
            kubeconfig = self.cluster.service_account_kubeconfig("wattkeeper", namespace=OPERATOR_NAMESPACE)
        pace, port = self.pace, processes.free_port()
        self._ports[name] = port
        self._start(
            name,
            "run",
            f"--kubeconfig={kubeconfig}",
            f"--operator-namespace={OPERATOR_NAMESPACE}",
            *([f"--prometheus-url={self._prometheus.url}"] if self._prometheus else []),
            f"--speed-up={pace.speed_up:g}",
            f"--tick={pace.tick:g}",
            f"--collect-interval={pace.collect_interval:g}",
            f"--rate-window={pace.rate_window:g}",
            f"--length-window={pace.length_window:g}",
            f"--cap-ttl={pace.cap_ttl:g}",
            f"--http-port={port}",
            *arguments,
        )
        if wait:
            self.wait(lambda: self.acts(name), f"the first pass of {name}")

    def _start(self, name: str, *arguments: str) -> None:
        environment = {"PYTHONPATH": str(ROOT / "operator"), "PYTHONUNBUFFERED": "1"}
        self._processes.start(name, sys.executable, "-m", "wattkeeper", *arguments, environment=environment)

    def operators(self) -> list[str]:
        """Names of the operators that run."""
        return [name for name in self._ports if self._processes.runs(name)]

    def acts(self, name: str = "operator") -> bool:
        """Whether this operator holds the Lease and keeps the fleet."""
        code, page = _http(f"http://127.0.0.1:{self._ports[name]}/readyz")
        return code == 200 and "lastGoodPassAgeSeconds" in page

    def actions(self, namespace: str, name: str = "operator") -> dict[str, float]:
        """How often the operator acted on a namespace's services, by kind of action."""
        found = re.findall(
            rf'^wattkeeper_actuator_actions_total{{action="(\w+)",namespace="{namespace}",[^}}]*}} (\S+)$',
            self.own_metrics(name),
            re.MULTILINE,
        )
        return collections.defaultdict(float, {action: float(count) for action, count in found})

    def own_metrics(self, name: str = "operator") -> str:
        """The operator's /metrics page."""
        return _http(f"http://127.0.0.1:{self._ports[name]}/metrics")[1]

    def kill(self, name: str = "operator") -> None:
        """End a process at once (SIGKILL)."""
        self._processes.stop(name)

    def terminate(self, name: str = "operator", *, timeout_seconds: float = 30.0) -> int:
        """Ask a process to stop (SIGTERM), wait for it, and return its exit code."""
        self._processes.send(name, signal.SIGTERM)
        return self._processes.wait(name, timeout_seconds=timeout_seconds)

    def wait_exit(self, name: str = "operator", *, timeout_seconds: float = 30.0) -> int:
        """Wait for a process that ends by itself; returns its exit code."""
        return self._processes.wait(name, timeout_seconds=timeout_seconds)

    def log(self, name: str = "operator") -> str:
        """All that a process wrote."""
        return self._processes.log(name)

    def wait(
        self, probe: collections.abc.Callable[[], Any], what: str, *, timeout_seconds: float = 60.0, check: bool = True
    ) -> Any:
        """Wait until the probe gives something true; with `check`, fail at once when a process has ended."""

        def alive() -> Any:
            if check:
                self._processes.check()
            return probe()

        return base.wait_until(alive, timeout_seconds=timeout_seconds, what=what, interval_seconds=0.25)

    # What is to be seen

    def status(self, namespace: str, name: str = "chat") -> Object:
        """Status of an InferenceService."""
        return dict(self.get(SERVICES, name, namespace).get("status") or {})

    def condition(self, namespace: str, type_: str, name: str = "chat") -> tuple[str, str, str]:
        """(status, reason, message) of a condition; status is "absent" where there is none."""
        for item in self.status(namespace, name).get("conditions", []):
            if item["type"] == type_:
                return item["status"], item["reason"], item.get("message", "")
        return "absent", "", ""

    def wait_condition(
        self, namespace: str, type_: str, status: str, *, name: str = "chat", timeout_seconds: float = 60.0
    ) -> tuple[str, str, str]:
        """Wait until a condition has this status, and return it."""

        def probe() -> tuple[str, str, str] | None:
            found = self.condition(namespace, type_, name)
            return found if found[0] == status else None

        return tuple(self.wait(probe, f"{type_}={status} of {namespace}/{name}", timeout_seconds=timeout_seconds))

    def caps(self, owner: str) -> list[Object]:
        """Entries of all NodePowerCaps of a service, given as namespace/name."""
        items = self.cluster.get(POWER_CAPS)["items"]
        return [e for item in items for e in item["spec"].get("caps") or [] if e["owner"] == owner]

    def enforced_watts(self, namespace: str) -> list[float]:
        """Limits that the twin enforces on the GPUs of a namespace's pods."""
        return [
            device["enforced"]
            for item in self.cluster.get(POWER_CAPS)["items"]
            for device in (item.get("status") or {}).get("devices") or []
            if any(pod.startswith(f"{namespace}/") for pod in device.get("pods") or [])
        ]

    def replicas(self, namespace: str, name: str = "chat") -> int:
        """Replicas asked of a Deployment."""
        return int(self.get("deployment", name, namespace)["spec"]["replicas"])

    def arguments(self, namespace: str, name: str = "chat") -> list[str]:
        """Arguments of a Deployment's first container."""
        target = self.get("deployment", name, namespace)
        return list(target["spec"]["template"]["spec"]["containers"][0].get("args") or [])

    def events(self, namespace: str) -> list[tuple[str, str, str]]:
        """(type, reason, message) of the operator's events, oldest first."""
        items = self.cluster.get("events", f"--namespace={namespace}")["items"]
        ours = [item for item in items if (item.get("source") or {}).get("component") == "wattkeeper"]
        ours.sort(key=lambda item: item["metadata"]["creationTimestamp"])
        return [(item["type"], item["reason"], item["message"]) for item in ours]


def deployment(
    namespace: str,
    name: str = "chat",
    *,
    replicas: int,
    arguments: collections.abc.Sequence[str] = ("--max-num-seqs=256", "--max-num-batched-tokens=8192"),
    ready_delay_seconds: float = 4.0,
    node_selector: dict[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A vLLM Deployment with one GPU per pod; `ready_delay_seconds` is the start-up time, wall time."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {kwok.READY_DELAY_ANNOTATION: f"{round(1000 * ready_delay_seconds)}ms"},
                },
                "spec": {
                    "nodeSelector": {"nvidia.com/gpu.product": GPU_PRODUCT, **(node_selector or {})},
                    "containers": [
                        {
                            "name": "vllm",
                            "image": "vllm/vllm-openai:v0.15.1",
                            "args": [f"--model={MODEL}", "--max-model-len=16384", *arguments],
                            "resources": {"limits": {"nvidia.com/gpu": "1"}},
                        }
                    ],
                },
            },
            **spec,
        },
    }


def service(namespace: str, name: str = "chat", *, target: str = "chat", **spec: Any) -> Object:
    """An InferenceService in mode Enforce; `spec` replaces parts of the spec."""
    return {
        "apiVersion": "wattkeeper.io/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": MODEL,
            "targetRef": {"name": target, "container": "vllm"},
            "slo": {
                "ttft": {"percentile": 95, "target": "1s"},
                "tpot": {"percentile": 95, "target": "50ms"},
                "minAttainment": 0.95,
            },
            "mode": "Enforce",
            "levers": {"replicas": {"min": 1, "max": 6}, "powerCap": {"min": "300W", "max": "700W", "step": "50W"}},
            "metrics": {"maxAge": "5s"},
            **spec,
        },
    }


def environment_data() -> pathlib.Path | None:
    """The folder of measured public data, where there is one."""
    named = os.environ.get("WATTKEEPER_DATA")
    return pathlib.Path(named) if named else None


def _http(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0, ""


def _readable(path: pathlib.Path, *, lines: int = 40) -> str:
    """The end of a log; JSON lines become level and message."""
    shown = []
    for line in path.read_text(errors="replace").splitlines()[-lines:]:
        if re.match(r"\{", line):
            try:
                entry = json.loads(line)
                line = " ".join(str(entry[key]) for key in ("time", "level", "message", "exception") if key in entry)
            except ValueError:
                pass
        shown.append(line)
    return "\n".join(shown)
