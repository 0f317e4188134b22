"""Controllers, scheduler and kubelets in small: Deployments and StatefulSets on an embedded API become running pods.

    with EmbeddedApi() as api, Workloads(api.registry, startup_seconds=lambda pod: 90.0, seconds_scale=0.01) as running:
        running.add_gpu_node("gpu-0", gpu_product="NVIDIA-H100-80GB-HBM3", count=8)

Times are simulated seconds; `seconds_scale` is how many real seconds one of them takes, so 0.01 plays a hundred times
faster than life.
"""

import heapq
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from wattkeeper.embedded import kubelet, placement, rollout, statefulsets
from wattkeeper.embedded.cluster import Cluster, controller
from wattkeeper.embedded.errors import ApiError
from wattkeeper.embedded.registry import Registry
from wattkeeper.embedded.values import Json, dig, metadata, now, time_text

_LOG = logging.getLogger(__name__)
_KINDS = ("Node", "Deployment", "ReplicaSet", "StatefulSet", "Pod")
_RETRY_SECONDS = 1.0

Key = tuple[str, str, str]


class Workloads:
    """One thread that plays all of them over a registry.

    Args:
        registry: of a (started or not yet started) EmbeddedApi.
        startup_seconds: from a pod's start to Ready, called once per pod; None: it crashes and never becomes Ready.
        shutdown_seconds: from a pod's deletion to its end; at most its grace period.
        seconds_scale: real seconds per simulated second, above 0.
        first_address: of the pods; each gets the next one.

    """

    def __init__(
        self,
        registry: Registry,
        *,
        startup_seconds: kubelet.StartUp = lambda _pod: 0.0,
        shutdown_seconds: kubelet.ShutDown = lambda _pod: 0.0,
        seconds_scale: float = 1.0,
        first_address: str = "127.64.0.1",
    ) -> None:
        if not seconds_scale > 0:
            raise ValueError(f"seconds_scale is {seconds_scale}; it must be above 0")
        self._cluster = Cluster(registry)
        self._store = registry.store
        self._startup, self._shutdown, self._scale = startup_seconds, shutdown_seconds, seconds_scale
        self._addresses = kubelet.Addresses(first_address)
        self._progress = rollout.Progress()
        self._seen = dict.fromkeys(_KINDS, -1)
        self._dirty: set[Key] = set()
        self._unplaced = True
        self._handled: set[tuple[str, str]] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Start the thread."""
        if self._thread is not None:
            raise RuntimeError("these workloads are already started; make others")
        self._thread = threading.Thread(target=self._run, name="embedded-workloads", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop the thread; pods stay as they are."""
        if self._thread is None:
            return
        with self._store.changed:
            self._stopping = True
            self._store.changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def add_gpu_node(self, name: str, *, gpu_product: str, count: int, labels: Mapping[str, str] | None = None) -> Json:
        """Create a Ready node with `count` GPUs, labelled as NVIDIA's feature discovery labels it."""
        capacity = {"cpu": "192", "memory": "2Ti", "pods": "110", placement.GPU: str(count)}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": time_text(now())}
        body = {
            "metadata": {
                "name": name,
                "labels": {
                    "kubernetes.io/hostname": name,
                    "nvidia.com/gpu.present": "true",
                    "nvidia.com/gpu.product": gpu_product,
                    "nvidia.com/gpu.count": str(count),
                    **(labels or {}),
                },
            },
            "status": {
                "capacity": capacity,
                "allocatable": capacity,
                "conditions": [ready],
                "nodeInfo": {"kubeletVersion": "embedded"},
            },
        }
        made = self._cluster.create("Node", body, manager="kubelet")
        if made is None:
            raise ValueError(f"a node named {name} exists already; choose another name")
        return made

    # The loop

    def _run(self) -> None:
        while True:
            with self._store.changed:
                while not (self._stopping or self._noticed() or self._due()):
                    left = self._timers[0][0] - time.monotonic() if self._timers else None
                    self._store.changed.wait(left)
                if self._stopping:
                    return
            while self._due():
                heapq.heappop(self._timers)[2]()
            self._noticed()
            self._work()

    def _due(self) -> bool:
        return bool(self._timers) and self._timers[0][0] <= time.monotonic()

    def _after(self, simulated_seconds: float, action: Callable[[], None]) -> None:
        due = time.monotonic() + simulated_seconds * self._scale
        heapq.heappush(self._timers, (due, next(self._serial), action))

    def _noticed(self) -> bool:
        """Take in what changed; returns whether there is anything to do."""
        for kind in _KINDS:
            key = self._cluster.resources[kind].storage
            with self._store.lock:
                try:
                    changes = [(change.type, change.obj) for change in self._store.since(key, self._seen[kind])]
                except ApiError:
                    changes = [("ADDED", obj) for obj in self._store.objects(key)]
                self._seen[kind] = self._store.version
            for change, obj in changes:
                self._notice(kind, change, obj)
        return bool(self._dirty) or self._unplaced

    def _notice(self, kind: str, change: str, obj: Json) -> None:
        meta = metadata(obj)
        namespace = meta.get("namespace", "")
        if kind == "Node":
            self._unplaced = True
            if change == "DELETED":
                self._dirty.add(("LostNode", "", meta["name"]))
            return
        if change == "DELETED":
            self._handled -= {("start", meta["uid"]), ("end", meta["uid"])}
            self._progress.marks.pop(meta["uid"], None)
        else:
            self._dirty.add((kind, namespace, meta["name"]))
        owner = controller(obj)
        if owner is not None and owner["kind"] in _KINDS:
            self._dirty.add((owner["kind"], namespace, owner["name"]))
        if kind == "Pod":
            self._unplaced = self._unplaced or change == "DELETED" or not dig(obj, "spec", "nodeName")

    def _work(self) -> None:
        """Handle what is dirty: sets before pods, so that one pass does most of a step."""
        dirty, self._dirty = self._dirty, set()
        for key in sorted(dirty, key=lambda item: (("LostNode", *_KINDS).index(item[0]), item)):
            try:
                self._handle(key)
            except ApiError as error:
                _LOG.warning("%s %s/%s: %s; trying again", *key, error)
                self._after(_RETRY_SECONDS / self._scale, lambda key=key: self._dirty.add(key))  # type: ignore[misc]
        if self._unplaced:
            self._unplaced = False
            placement.place(self._cluster)

    def _handle(self, key: Key) -> None:
        kind, namespace, name = key
        if kind == "LostNode":
            for pod in self._cluster.objects("Pod"):
                if dig(pod, "spec", "nodeName") == name and self._cluster.get("Node", "", name) is None:
                    self._cluster.delete("Pod", pod, grace_seconds=0)
            return
        obj = self._cluster.get(kind, namespace, name)
        if obj is None:
            return
        if kind == "Deployment":
            again = rollout.roll(
                self._cluster, obj, time_seconds=time.monotonic(), progress=self._progress, scale=self._scale
            )
            if again is not None:
                self._after((again - time.monotonic()) / self._scale, lambda: self._dirty.add(key))
        elif kind == "ReplicaSet":
            rollout.keep(self._cluster, obj)
        elif kind == "StatefulSet":
            statefulsets.keep(self._cluster, obj)
        else:
            self._tend(obj)

    def _tend(self, pod: Json) -> None:
        """Start a placed pod, and end a deleted one, each once."""
        meta = metadata(pod)
        identity = meta["namespace"], meta["name"], meta["uid"]
        if meta.get("deletionTimestamp"):
            if ("end", meta["uid"]) not in self._handled:
                self._handled.add(("end", meta["uid"]))
                grace = float(meta.get("deletionGracePeriodSeconds") or 0)
                self._after(min(self._shutdown(pod), grace), lambda: kubelet.end(self._cluster, *identity))
        elif dig(pod, "spec", "nodeName") and ("start", meta["uid"]) not in self._handled:
            self._handled.add(("start", meta["uid"]))
            seconds = self._startup(pod)
            kubelet.start(self._cluster, pod, self._addresses, crashed=seconds is None)
            if seconds is not None and math.isfinite(seconds):
                self._after(seconds, lambda: kubelet.ready(self._cluster, *identity))
