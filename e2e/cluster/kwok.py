"""Simulated nodes and pods: kwok plays the kubelet for nodes that carry its annotation, and for no other.

Pods on them become Ready with invented addresses. How long that takes stands for a server's start-up time; pods with
certain container arguments can be made to crash, as a server with a bad configuration does.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import pathlib
from typing import Any

import yaml

from e2e.cluster import processes, tools

NODE_ANNOTATION = "kwok.x-k8s.io/node"
# On a pod (template): overrides the start-up time of this pod, as a duration such as "90s".
READY_DELAY_ANNOTATION = "e2e.wattkeeper.io/ready-delay"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PodBehaviour:
    """How simulated pods live."""

    ready_delay_seconds: float = 0.0
    """From scheduled to Ready."""
    crash_arguments: tuple[str, ...] = ()
    """Pods with one of these container arguments crash instead of becoming Ready."""


class Kwok:
    """The kwok program for one cluster."""

    def __init__(
        self,
        *,
        running: processes.Processes,
        directory: pathlib.Path,
        kubeconfig: pathlib.Path,
        pod_cidr: str,
    ) -> None:
        self._running = running
        self._directory = directory
        self._kubeconfig = kubeconfig
        self._pod_cidr = pod_cidr

    def start(self, behaviour: PodBehaviour) -> None:
        """Start kwok with this behaviour of pods."""
        config = self._directory / "kwok-stages.yaml"
        config.write_text(yaml.safe_dump_all(stages(behaviour)))
        self._running.start(
            "kwok",
            tools.find("kwok"),
            f"--kubeconfig={self._kubeconfig}",
            f"--config={config}",
            f"--cidr={self._pod_cidr}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={NODE_ANNOTATION}=fake",
            "--node-lease-duration-seconds=40",
        )

    def stop(self) -> None:
        """End kwok; nodes and pods stay as they are."""
        self._running.stop("kwok")


def stages(behaviour: PodBehaviour) -> list[dict[str, Any]]:
    """kwok's own life cycles for nodes and pods, with this behaviour worked in."""
    found = [yaml.safe_load(path.read_text()) for path in sorted((tools.folder() / "kwok-stages").glob("*.yaml"))]
    if not found:
        raise tools.ToolsMissingError(f"no kwok stages in {tools.folder()}/kwok-stages: run `make tools`")
    ready = next(stage for stage in found if stage["metadata"]["name"] == "pod-ready")
    ready["spec"]["delay"] = {
        "durationMilliseconds": round(behaviour.ready_delay_seconds * 1000),
        "durationFrom": {"expressionFrom": f'.metadata.annotations["{READY_DELAY_ANNOTATION}"]'},
    }
    if behaviour.crash_arguments:
        found.append(_split_off_crashes(ready, behaviour.crash_arguments))
    return found


def _split_off_crashes(ready: dict[str, Any], arguments: tuple[str, ...]) -> dict[str, Any]:
    """A stage for the pods with a crashing argument; `ready` no longer takes them."""
    condition = {"key": ".spec.containers.[].args.[]", "values": list(arguments)}
    crash: dict[str, Any] = json.loads(json.dumps(ready))
    crash["metadata"]["name"] = "pod-crash"
    del crash["spec"]["delay"]
    crash["spec"]["selector"]["matchExpressions"].append({**condition, "operator": "In"})
    # Once is enough: without this the stage would match its own result for ever.
    crash["spec"]["selector"]["matchExpressions"].append(
        {"key": ".status.containerStatuses.[].state.waiting.reason", "operator": "DoesNotExist"}
    )
    crash["spec"]["next"] = {"statusTemplate": _CRASHED}
    ready["spec"]["selector"]["matchExpressions"].append({**condition, "operator": "NotIn"})
    return crash


_CRASHED = """
{{ $now := Now }}
conditions:
{{ range $type, $status := dict "Initialized" "True" "Ready" "False" "ContainersReady" "False" }}
- lastTransitionTime: {{ $now | Quote }}
  status: {{ $status | Quote }}
  type: {{ $type }}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- image: {{ .image | Quote }}
  name: {{ .name | Quote }}
  ready: false
  restartCount: 3
  state:
    waiting:
      reason: CrashLoopBackOff
      message: back-off restarting failed container
{{ end }}
phase: Pending
startTime: {{ $now | Quote }}
"""


def gpu_node(name: str, *, gpu_product: str, count: int, labels: collections.abc.Mapping[str, str]) -> dict[str, Any]:
    """A Node object with GPUs, as the NVIDIA device plugin and GPU feature discovery present it."""
    resources = {"cpu": "128", "memory": "1024Gi", "pods": "110", "nvidia.com/gpu": str(count)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {NODE_ANNOTATION: "fake"},
            "labels": {
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "nvidia.com/gpu.count": str(count),
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": gpu_product,
                **labels,
            },
        },
        "status": {"capacity": resources, "allocatable": resources},
    }
