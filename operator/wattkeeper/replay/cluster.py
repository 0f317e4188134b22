"""The Kubernetes objects of a replayed service: written by the operator, kept true to the simulated pods and GPUs.

What others would write is written here, before each pass: pods and their conditions, the Deployment's status, and the
node agents' reports. What the operator writes is read back as a `Decision`: replicas, arguments, and the power limits
of single GPUs that are in force (an entry counts until it expires).
"""

import copy
import itertools
from typing import Any

from wattkeeper.actuators import engine_args
from wattkeeper.api.base import GROUP, VERSION
from wattkeeper.controller.cache import KINDS
from wattkeeper.controller.clock import from_rfc3339, to_rfc3339
from wattkeeper.controller.kube import Object
from wattkeeper.domain.engine import EngineSettings
from wattkeeper.replay.objects import Objects
from wattkeeper.replay.stage import EPOCH_SECONDS
from wattkeeper.rivals.types import Decision
from wattkeeper.twin import agent
from wattkeeper.twin.deployment import Deployment, PodPhase, PodView
from wattkeeper.twin.nodes import Gpu

_GPU_LABEL = "nvidia.com/gpu.product"


class SimulatedCluster:
    """One InferenceService, its Deployment, and the pods and nodes of a simulated deployment.

    `service`, `workload` and `profiles` are manifests. `deployment` plays the pods. The workload's replica count and
    arguments must be those that the pods run with.
    """

    def __init__(
        self, deployment: Deployment, *, service: Object, workload: Object, profiles: tuple[Object, ...] = ()
    ) -> None:
        self._deployment = deployment
        self.objects = Objects(*(kind.plural for kind in KINDS))
        self._pods: dict[tuple[str, str], PodView] = {}
        self._uids = itertools.count(1)
        for plural, body in (("inferenceservices", service), ("deployments", workload)):
            self._put(plural, body)
        for body in profiles:
            self._put("modelprofiles", body)
        meta = service["metadata"]
        self._owner = f"{meta['namespace']}/{meta['name']}"
        self._service = (meta["namespace"], meta["name"])
        self._workload = (workload["metadata"]["namespace"], workload["metadata"]["name"])
        self._container = service["spec"]["targetRef"].get("container")
        self._template = self._live()["spec"]["template"]
        self._engine: EngineSettings | None = None
        for name, gpus in deployment.fleet.inventory.nodes.items():
            self._put("nodes", _node(name, gpus))
            self._put("nodepowercaps", _power_cap(name))

    def _put(self, plural: str, body: Object) -> None:
        made = copy.deepcopy(body)
        made["metadata"] = {
            **made["metadata"],
            "uid": f"uid-{next(self._uids)}",
            "generation": 1,
            "creationTimestamp": to_rfc3339(EPOCH_SECONDS),
        }
        self.objects.shelves[plural].put(made)

    def _live(self) -> Object:
        found = self.objects.shelves["deployments"].get(*self._workload)
        if found is None:
            raise KeyError(f"the Deployment {'/'.join(self._workload)} is gone, and no policy deletes one")
        return found

    @property
    def status(self) -> Object:
        """Of the InferenceService."""
        found = self.objects.shelves["inferenceservices"].get(*self._service)
        return {} if found is None else found.get("status") or {}

    # What others write

    def sync(self, now_seconds: float) -> None:
        """Bring pods, the Deployment's status and the agents' reports up to date (Unix time)."""
        pods = self._deployment.pods()
        self._sync_pods(pods)
        self._sync_workload(pods)
        stamp, since = to_rfc3339(now_seconds), to_rfc3339(EPOCH_SECONDS)
        shelf = self.objects.shelves["nodepowercaps"]
        for name, gpus in self._deployment.fleet.inventory.nodes.items():
            body = shelf.get("", name)
            if body is not None:
                generation = int(body["metadata"]["generation"])
                status = agent.status(gpus, generation, since=since, now=stamp)
                shelf.put({**body, "metadata": dict(body["metadata"]), "status": status})

    def _sync_pods(self, pods: tuple[PodView, ...]) -> None:
        shelf = self.objects.shelves["pods"]
        seen = {view.key: view for view in pods}
        for key, view in seen.items():
            if self._pods.get(key) != view:
                shelf.put(self._pod(view))
        for key in self._pods.keys() - seen.keys():
            shelf.remove(*key)
        self._pods = seen

    def _pod(self, view: PodView) -> Object:
        template, (namespace, name) = self._live()["spec"]["template"], view.key
        scheduled, ready = view.since_seconds, view.ready_since_seconds
        if ready is not None and ready <= scheduled:  # ready since before the trace began
            scheduled = ready - self._deployment.lifecycle.startup_seconds
        conditions = [
            _condition("PodScheduled", view.node is not None, scheduled),
            _condition("Ready", view.phase is PodPhase.READY, scheduled if ready is None else ready),
        ]
        body: Object = {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{name}",
                "labels": dict(template["metadata"].get("labels") or {}),
            },
            "spec": {"containers": template["spec"]["containers"], "nodeName": view.node},
            "status": {"phase": "Pending" if ready is None else "Running", "conditions": conditions},
        }
        if view.phase is PodPhase.DRAINING:
            body["metadata"]["deletionTimestamp"] = to_rfc3339(EPOCH_SECONDS + view.since_seconds)
        return body

    def _sync_workload(self, pods: tuple[PodView, ...]) -> None:
        deployment, old = self._deployment, self._live()
        alive = [view for view in pods if view.phase is not PodPhase.DRAINING]
        ready = sum(view.phase is PodPhase.READY for view in alive)
        reason = "ReplicaSetUpdated" if deployment.rolling_out else "NewReplicaSetAvailable"
        status = {
            "observedGeneration": old["metadata"]["generation"],
            "replicas": len(alive),
            "updatedReplicas": sum(view.revision == deployment.revision for view in alive),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "conditions": [{"type": "Progressing", "status": "True", "reason": reason, "message": ""}],
        }
        if old.get("status") != status:
            self.objects.shelves["deployments"].put({**old, "metadata": dict(old["metadata"]), "status": status})

    # What the operator wrote

    def decision(self, now_seconds: float) -> Decision:
        """What it wants now (Unix time)."""
        live = self._live()
        template = live["spec"]["template"]
        if template != self._template:
            self._template = template
            self._engine = engine_args.read_engine(template["spec"], self._container)
        return Decision(
            replicas=int(live["spec"].get("replicas", 1)),
            gpu_limits=self._limits(now_seconds),
            engine=self._engine,
            reason=str((self.status.get("plan") or {}).get("reason", "")),
        )

    def _limits(self, now_seconds: float) -> dict[str, tuple[float | None, float | None]]:
        """(watts, MHz) by GPU, of the entries that have not expired."""
        return {
            entry["uuid"]: (entry.get("watts"), entry.get("clockMHz"))
            for body in self.objects.shelves["nodepowercaps"].objects()
            for entry in body["spec"].get("caps") or []
            if entry.get("owner") == self._owner and (from_rfc3339(entry.get("expiresAt")) or 0.0) > now_seconds
        }


def _condition(kind: str, holds: bool, since_seconds: float) -> dict[str, Any]:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "lastTransitionTime": to_rfc3339(EPOCH_SECONDS + since_seconds),
    }


def _node(name: str, gpus: list[Gpu]) -> Object:
    label = gpus[0].card.dcgm_name.replace(" ", "-")
    return {
        "metadata": {"name": name, "labels": {_GPU_LABEL: label}},
        "spec": {},
        "status": {"allocatable": {engine_args.GPU_RESOURCES[0]: str(len(gpus))}},
    }


def _power_cap(name: str) -> Object:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "NodePowerCap",
        "metadata": {"name": name},
        "spec": {"caps": []},
    }
