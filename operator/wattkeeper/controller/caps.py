"""Power caps as the cluster shows them: what a service asked for, what its cards do, and whether they obey.

Reads NodePowerCap objects; the writing is in `act`. A GPU belongs to a service when the node's agent says that one of
the service's pods runs on it.
"""

import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import pydantic

from wattkeeper.api.node_power_cap import CapEntry, DeviceStatus, NodePowerCap
from wattkeeper.controller import cache as cluster
from wattkeeper.controller.clock import from_rfc3339
from wattkeeper.controller.kube import Object
from wattkeeper.controller.service import Service
from wattkeeper.domain.observation import GpuReading

CAP_REFUSED = "CapRefused"
_ENFORCED_TOLERANCE_WATTS = 2.0
_GRACE_SECONDS = 60.0
"""A limit may take this long from being asked for to being read back before it counts as refused."""


@dataclass(frozen=True, kw_only=True)
class CapReport:
    """State of the power lever of a service. Watts per GPU, mean over its GPUs."""

    enforced: bool | None
    """None: not known or not asked for."""
    reason: str
    message: str
    usable: bool
    """True where a plan may count on the lever."""
    requested_watts: float | None = None
    clamped_watts: float | None = None
    enforced_watts: float | None = None
    measured_watts: float | None = None


@dataclass(frozen=True, kw_only=True)
class Node:
    """One NodePowerCap, parsed."""

    name: str
    resource_version: str
    entries: tuple[CapEntry, ...]
    devices: tuple[DeviceStatus, ...]
    heartbeat: float | None

    def devices_of(self, namespace: str, pods: Iterable[str]) -> list[DeviceStatus]:
        """GPUs on which one of the pods runs."""
        wanted = {f"{namespace}/{pod}" for pod in pods}
        return [device for device in self.devices if wanted.intersection(device.pods)]


@dataclass(kw_only=True)
class PowerView:
    """All NodePowerCaps at one moment."""

    nodes: dict[str, Node] = field(default_factory=dict)
    served: bool = True
    """False where the CRD is not installed or not readable."""
    now_seconds: float = 0.0
    """Wall time."""
    agent_max_age_seconds: float = 90.0

    @functools.cached_property
    def _by_owner(self) -> dict[str, list[tuple[str, CapEntry]]]:
        """Entries with the node that they are on."""
        found: dict[str, list[tuple[str, CapEntry]]] = defaultdict(list)
        for node in self.nodes.values():
            for entry in node.entries:
                found[entry.owner].append((node.name, entry))
        return dict(found)

    def nodes_with_entries(self, owner: str) -> set[str]:
        """Nodes on which a service has entries, expired ones included."""
        return {name for name, _ in self._by_owner.get(owner, ())}

    def entries_of(self, service: Service) -> list[CapEntry]:
        """Unexpired entries that a service owns."""
        return [
            entry
            for _, entry in self._by_owner.get(service.owner, ())
            if (from_rfc3339(entry.expires_at) or 0.0) > self.now_seconds
        ]

    def current(self, service: Service) -> tuple[float | None, float | None]:
        """(cap in watts, clock in MHz) asked for now; the least strict where entries differ."""
        entries = self.entries_of(service)
        caps = [entry.watts for entry in entries]
        clocks = [entry.clock_mhz for entry in entries]
        return _least_strict(caps), _least_strict(clocks)

    def gpus(self, service: Service) -> dict[str, tuple[GpuReading, ...]]:
        """GPUs of each pod of a service as the agents read them."""
        found: dict[str, tuple[GpuReading, ...]] = {}
        for pod in service.pods:
            node = self.nodes.get(pod["spec"].get("nodeName") or "")
            if node is None or self._silent(node):
                continue
            name = pod["metadata"]["name"]
            found[name] = tuple(
                GpuReading(
                    uuid=device.uuid,
                    node=node.name,
                    power_watts=device.measured,
                    sm_clock_mhz=device.clock_mhz,
                    model=device.model,
                    power_limit_watts=device.enforced,
                )
                for device in node.devices_of(service.namespace, [name])
            )
        return found

    def silent_nodes(self, service: Service) -> list[str]:
        """Nodes of the service whose agent does not report."""
        return sorted(name for name in service.nodes if name not in self.nodes or self._silent(self.nodes[name]))

    def _silent(self, node: Node) -> bool:
        return node.heartbeat is None or self.now_seconds - node.heartbeat > self.agent_max_age_seconds

    def report(self, service: Service, *, acting: bool, asked_since: float) -> CapReport | None:
        """What to say of the power lever; None where the service has none.

        `acting`: the service is enforced. `asked_since`: wall time since when its cap is as it is.
        """
        if service.levers.power_cap is None and service.levers.clock_lock is None:
            return None
        if not self.served:
            return CapReport(
                enforced=False,
                reason="CrdNotInstalled",
                message="NodePowerCap is not served: apply crds/",
                usable=False,
            )
        silent = self.silent_nodes(service)
        if silent and acting:
            return CapReport(
                enforced=False,
                reason="AgentAbsent",
                message=f"no node agent reports on {', '.join(silent[:3])}: planning goes on without caps",
                usable=False,
            )
        devices = [
            device
            for name in service.nodes
            if name in self.nodes
            for device in self.nodes[name].devices_of(service.namespace, service.pod_names)
        ]
        watts = {
            "requested_watts": _mean(device.requested for device in devices),
            "clamped_watts": _mean(device.clamped for device in devices),
            "enforced_watts": _mean(device.enforced for device in devices),
            "measured_watts": _mean(device.measured for device in devices),
        }
        if not acting:
            return CapReport(
                enforced=None, reason="NotEnforcing", message="caps are only set in mode Enforce", usable=True, **watts
            )
        asked = {entry.uuid for entry in self.entries_of(service) if entry.watts is not None}
        refused = [device.uuid for device in devices if device.uuid in asked and _refuses(device)]
        if refused and self.now_seconds - asked_since >= _GRACE_SECONDS:
            return CapReport(
                enforced=False,
                reason=CAP_REFUSED,
                message=f"{len(refused)} of {len(devices)} GPUs do not take the limit, for example {refused[0]}",
                usable=False,
                **watts,
            )
        if watts["requested_watts"] is None:
            return CapReport(enforced=True, reason="NoCap", message="no cap is wanted", usable=True, **watts)
        message = f"{len(devices)} GPUs limited to {watts['requested_watts']:.0f} W"
        if watts["clamped_watts"] is not None and watts["clamped_watts"] != watts["requested_watts"]:
            message = f"{message} are set to {watts['clamped_watts']:.0f} W, the cards' own bounds"
        return CapReport(enforced=True, reason="Enforced", message=message, usable=True, **watts)


def _refuses(device: DeviceStatus) -> bool:
    """The agent did not take the wish over, or the card shows another limit than the agent set."""
    if device.requested is None:
        return True
    wanted = device.clamped if device.clamped is not None else device.requested
    return device.enforced is not None and abs(device.enforced - wanted) > _ENFORCED_TOLERANCE_WATTS


def view(cache: cluster.ClusterCache, *, now_seconds: float, agent_max_age_seconds: float) -> PowerView:
    """All NodePowerCaps of the cluster. One that does not parse is left out: its node then counts as silent."""
    nodes = {}
    for body in cache.objects(cluster.POWER_CAPS):
        node = _node(body)
        if node is not None:
            nodes[node.name] = node
    return PowerView(
        nodes=nodes,
        served=cache.watches(cluster.POWER_CAPS),
        now_seconds=now_seconds,
        agent_max_age_seconds=agent_max_age_seconds,
    )


def _node(body: Object) -> Node | None:
    try:
        parsed = NodePowerCap.model_validate({"spec": body.get("spec") or {}, "status": body.get("status") or {}})
    except pydantic.ValidationError:
        return None
    return Node(
        name=body["metadata"]["name"],
        resource_version=body["metadata"]["resourceVersion"],
        entries=tuple(parsed.spec.caps),
        devices=tuple(parsed.status.devices),
        heartbeat=from_rfc3339(parsed.status.heartbeat),
    )


def _least_strict(values: list[float | None]) -> float | None:
    limits = [value for value in values if value is not None]
    return max(limits) if limits and len(limits) == len(values) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
