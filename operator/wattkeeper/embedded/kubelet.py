"""A stand-in for kubelets: pods start at once, become Ready after their start-up time, and end after their grace."""

import ipaddress
from collections.abc import Callable

from wattkeeper.embedded.cluster import Cluster, conditions, is_ready
from wattkeeper.embedded.values import Json, dig, metadata, now, time_text

StartUp = Callable[[Json], float | None]
ShutDown = Callable[[Json], float]
_MANAGER = "kubelet"


class Addresses:
    """Gives each pod an address of its own; from 127.0.0.0/8 test servers can listen on it on Linux."""

    def __init__(self, first: str = "127.64.0.1") -> None:
        self._next = ipaddress.ip_address(first)

    def take(self) -> str:
        """Return the next address."""
        address, self._next = self._next, self._next + 1
        return str(address)


def _containers(pod: Json, *, ready: bool, crashed: bool) -> list[Json]:
    started = dig(pod, "status", "startTime", default=time_text(now()))
    state: Json = {"running": {"startedAt": started}}
    if crashed:
        message = "back-off restarting failed container"
        state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
    return [
        {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": "",
            "ready": ready,
            "started": ready,
            "restartCount": int(crashed),
            "state": state,
        }
        for container in dig(pod, "spec", "containers", default=[])
    ]


def _report(cluster: Cluster, pod: Json, *, ready: bool, crashed: bool, address: str) -> None:
    status: Json = {
        **pod["status"],
        "phase": "Running",
        "hostIP": "127.0.0.1",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": dig(pod, "status", "startTime", default=time_text(now())),
    }
    status["containerStatuses"] = _containers({**pod, "status": status}, ready=ready, crashed=crashed)
    reason = "" if ready else "ContainersNotReady"
    for kind, value in (("Initialized", True), ("ContainersReady", ready), ("Ready", ready)):
        found = conditions({"status": status}, kind, str(value), "" if value else reason)
        status["conditions"] = found
    cluster.set_status("Pod", pod, status, manager=_MANAGER)


def start(cluster: Cluster, pod: Json, addresses: Addresses, *, crashed: bool) -> None:
    """Start a placed pod: Running and not Ready (or in a crash loop), with an address."""
    _report(cluster, pod, ready=False, crashed=crashed, address=dig(pod, "status", "podIP") or addresses.take())


def ready(cluster: Cluster, namespace: str, name: str, uid: str) -> None:
    """Make a started pod Ready unless it is another one, deleted, or Ready by now."""
    pod = cluster.get("Pod", namespace, name)
    if pod is None or metadata(pod)["uid"] != uid or metadata(pod).get("deletionTimestamp") or is_ready(pod):
        return
    _report(cluster, pod, ready=True, crashed=False, address=pod["status"]["podIP"])


def end(cluster: Cluster, namespace: str, name: str, uid: str) -> None:
    """Finish the deletion of a pod whose containers have ended."""
    pod = cluster.get("Pod", namespace, name)
    if pod is not None and metadata(pod)["uid"] == uid:
        cluster.delete("Pod", pod, grace_seconds=0)
