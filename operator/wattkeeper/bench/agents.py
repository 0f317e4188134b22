"""Stand-in for the node agents of a simulated fleet: reports every card of every node, and obeys at once."""

import datetime as dt
import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kubernetes import client

from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.controller.clock import to_rfc3339
from wattkeeper.controller.kube import Kube, KubeError, Object, node_power_cap_path
from wattkeeper.twin.agent import expired
from wattkeeper.twin.kube import Mirror

_log = logging.getLogger(__name__)
_LOWEST_WATTS, _DEFAULT_WATTS = 200.0, 700.0
_MEASURED_WATTS = 400.0


class Agents:
    """One thread that plays the agents of `nodes`, each reporting every `report_seconds`. Use as a context."""

    def __init__(self, kube: Kube, nodes: Sequence[str], *, report_seconds: float) -> None:
        core: Any = client.CoreV1Api(kube.api)
        custom: Any = client.CustomObjectsApi(kube.api)
        self._kube, self._nodes, self._report_seconds = kube, nodes, report_seconds
        self._pods = Mirror("pods", core.list_pod_for_all_namespaces)
        self._caps = Mirror(
            "nodepowercaps",
            lambda **options: custom.list_cluster_custom_object(GROUP, VERSION, "nodepowercaps", **options),
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-agents", daemon=True)

    def __enter__(self) -> "Agents":
        """Report every node once, then go on in the thread."""
        for mirror in (self._pods, self._caps):
            mirror.start()
            mirror.wait_synced(60.0)
        self._report(pause_seconds=0.0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for mirror in (self._pods, self._caps):
            mirror.stop()
        self._thread.join(timeout=30.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._report(pause_seconds=self._report_seconds / max(1, len(self._nodes)))

    def _report(self, *, pause_seconds: float) -> None:
        """One report of every node, spread over the period as those of real agents are."""
        by_node: dict[str, list[Object]] = defaultdict(list)
        for pod in self._pods.objects().values():
            by_node[pod["spec"].get("nodeName") or ""].append(pod)
        for name in self._nodes:
            caps = self._caps.objects().get(("", name))
            if caps is not None:
                try:
                    self._kube.patch(f"{node_power_cap_path(name)}/status", {"status": status(caps, by_node[name])})
                except KubeError as error:
                    _log.warning("no report of node %s: %s", name, error)
            if self._stopping.wait(pause_seconds):
                return


def status(caps: Object, pods: Sequence[Object]) -> Object:
    """What the agent of a node says: every card that a pod holds, at the limit asked for."""
    now = dt.datetime.now(dt.UTC)
    asked = {
        entry["uuid"]: entry.get("watts")
        for entry in (caps.get("spec") or {}).get("caps") or []
        if not expired(entry["expiresAt"], now)
    }
    devices = []
    for pod in pods:
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        uuid = f"GPU-{name}-0"
        watts = asked.get(uuid)
        device = {
            "uuid": uuid,
            "model": "NVIDIA H100 80GB HBM3",
            "pods": [f"{namespace}/{name}"],
            "min": _LOWEST_WATTS,
            "default": _DEFAULT_WATTS,
            "max": _DEFAULT_WATTS,
            "requested": watts,
            "clamped": watts,
            "enforced": watts or _DEFAULT_WATTS,
            "measured": _MEASURED_WATTS,
        }
        devices.append({key: value for key, value in device.items() if value is not None})
    return {
        "observedGeneration": caps["metadata"].get("generation", 0),
        "heartbeat": to_rfc3339(now.timestamp()),
        "devices": devices,
    }
