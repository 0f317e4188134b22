"""What a Kubernetes Deployment, its scheduler and the kubelets do to one service, in simulated seconds.

Rolling updates follow the Deployment controller: at most `max_surge` pods above the wanted number (rounded up), at most
`max_unavailable` below it (rounded down), old pods that are not ready first. On scale-down go, in the ReplicaSet
controller's order, pods without a node, then those not ready, then the youngest. A pod that finds too few free GPUs on
every node stays pending and is placed as soon as some are free.
"""

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wattkeeper.twin.fleet import Fleet, Phase, PodKey
from wattkeeper.twin.hardware import ReplicaHardware
from wattkeeper.twin.nodes import NoFreeGpuError

_PENDING_SECONDS = 5.0
"""The scheduler looks at pending pods this often."""


class FailureKind(enum.Enum):
    """What breaks."""

    POD = "pod"
    """The engine of one ready pod dies; its requests are lost and the pod is replaced."""
    NODE = "node"
    """All pods of a node die, and its GPUs are away for a while."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Something that breaks at a time."""

    at_seconds: float
    kind: FailureKind = FailureKind.POD
    down_seconds: float = 0.0
    """How long the GPUs of a node are away."""

    def __post_init__(self) -> None:
        if not (0.0 <= self.at_seconds < math.inf and 0.0 <= self.down_seconds < math.inf):
            raise ValueError(f"a failure needs finite times that are not negative, not {self}")


def draw_failures(*, per_day: float, span_seconds: float, seed: int, node_share: float = 0.1) -> tuple[Failure, ...]:
    """Failures at random, `per_day` on average; `node_share` of them take a node away for half an hour."""
    if not (per_day >= 0.0 and span_seconds > 0.0 and 0.0 <= node_share <= 1.0):
        raise ValueError("failures need a rate that is not negative, a positive span and a share in [0, 1]")
    rng = np.random.default_rng((seed, 19))
    count = int(rng.poisson(per_day * span_seconds / 86400.0))
    times = np.sort(rng.uniform(0.0, span_seconds, count)).tolist()
    nodes = (rng.random(count) < node_share).tolist()
    return tuple(
        Failure(at_seconds=time, kind=FailureKind.NODE, down_seconds=1800.0) if node else Failure(at_seconds=time)
        for time, node in zip(times, nodes, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class Lifecycle:
    """How pods come and go."""

    startup_seconds: float = 90.0
    """From being scheduled to taking requests: weights, compilation, warm-up."""
    startup_sigma: float = 0.0
    """Spread of the start-up time: standard deviation of its logarithm."""
    grace_seconds: float = 30.0
    max_surge: float = 0.25
    max_unavailable: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.startup_seconds, self.startup_sigma, self.grace_seconds) < 0.0:
            raise ValueError("times of a pod's life must not be negative")
        if not (0.0 <= self.max_surge <= 1.0 and 0.0 <= self.max_unavailable <= 1.0):
            raise ValueError("max_surge and max_unavailable are shares in [0, 1]")


class PodPhase(enum.Enum):
    """Where a pod is in its life."""

    PENDING = "Pending"
    STARTING = "Starting"
    READY = "Ready"
    DRAINING = "Draining"


@dataclass(frozen=True, kw_only=True)
class PodView:
    """One pod as the API would show it."""

    key: PodKey
    revision: int
    phase: PodPhase
    node: str | None
    gpus: tuple[str, ...]
    """UUIDs."""
    since_seconds: float
    """When it was created."""
    ready_since_seconds: float | None


@dataclass(kw_only=True)
class _Pod:
    key: PodKey
    number: int
    revision: int
    created: float
    node: str | None = None
    ready_at: float = math.inf
    draining: bool = False


class Deployment:
    """One service's pods on the nodes of a fleet. `advance` moves the fleet, and the pods with it."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        name: str,
        namespace: str,
        hardware: ReplicaHardware,
        replicas: int,
        lifecycle: Lifecycle | None = None,
        failures: Sequence[Failure] = (),
    ) -> None:
        """The first `replicas` pods are ready at once. `fleet.services[name]` must be there, and its nodes known."""
        self.fleet = fleet
        self.service = fleet.services[name]
        self.namespace = namespace
        self.lifecycle = lifecycle or Lifecycle()
        self.revision = 1
        self.rollouts = 0
        self._hardware = {1: hardware}
        self._desired = replicas
        self._pods: dict[PodKey, _Pod] = {}
        self._number = 0
        self._rng = np.random.default_rng((self.lifecycle.seed, 23))
        self._failures = sorted(failures, key=lambda failure: failure.at_seconds)
        self._away: dict[str, float] = {}
        self._watts: float | None = None
        self._clock_mhz: float | None = None
        self._limits: Mapping[str, tuple[float | None, float | None]] = {}
        self._reconcile()
        for pod in self._pods.values():
            if pod.node is not None:
                pod.ready_at = fleet.now
        self._make_ready()

    # Levers

    @property
    def desired(self) -> int:
        """Replicas that are wanted."""
        return self._desired

    @property
    def hardware(self) -> ReplicaHardware:
        """Of the newest revision."""
        return self._hardware[self.revision]

    def scale(self, replicas: int) -> None:
        """Want another number of replicas. Raises ValueError where it is negative."""
        if replicas < 0:
            raise ValueError(f"a Deployment cannot have {replicas} replicas")
        self._desired = replicas
        self._reconcile()

    def roll_out(self, hardware: ReplicaHardware) -> None:
        """Replace all pods, within surge and unavailability, by such with other settings."""
        if hardware == self.hardware:
            return
        self.revision += 1
        self.rollouts += 1
        self._hardware[self.revision] = hardware
        self._reconcile()

    def set_power(self, *, watts: float | None, clock_mhz: float | None) -> None:
        """Limit and clock lock of all GPUs that the service's pods hold, now and later; None: the card's default."""
        self._watts, self._clock_mhz = watts, clock_mhz
        self._apply_power()

    def limit(self, limits: Mapping[str, tuple[float | None, float | None]]) -> None:
        """(watts, MHz) of single GPUs by UUID, before what `set_power` says; only of those that the pods hold."""
        self._limits = dict(limits)
        self._apply_power()

    @property
    def power(self) -> tuple[float | None, float | None]:
        """(watts, MHz) asked for."""
        return self._watts, self._clock_mhz

    @property
    def pending(self) -> int:
        """Pods that wait for free GPUs."""
        return sum(pod.node is None for pod in self._pods.values())

    @property
    def rolling_out(self) -> bool:
        """Whether pods of an older revision are still there."""
        return any(pod.revision != self.revision and not pod.draining for pod in self._pods.values())

    def pods(self) -> tuple[PodView, ...]:
        """All pods, oldest first."""
        found = []
        members = self.service.members
        for pod in self._pods.values():
            member = members.get(pod.key)
            phase = PodPhase.PENDING if member is None else _PHASES[member.phase]
            found.append(
                PodView(
                    key=pod.key,
                    revision=pod.revision,
                    phase=phase,
                    node=pod.node,
                    gpus=() if member is None else tuple(gpu.uuid for gpu in member.gpus),
                    since_seconds=pod.created,
                    ready_since_seconds=pod.ready_at if phase is PodPhase.READY else None,
                )
            )
        return tuple(found)

    # Time

    def advance(self, until_seconds: float) -> None:
        """Move the fleet to a time, stopping where a pod becomes ready, something fails or pods wait for GPUs."""
        while self.fleet.now < until_seconds:
            self.fleet.advance(min(until_seconds, self._next_event()))
            self._forget_ended()
            self._fail()
            self._make_ready()
            self._reconcile()

    def _next_event(self) -> float:
        now = self.fleet.now
        times = [pod.ready_at for pod in self._pods.values() if pod.ready_at > now]
        times += [end for end in self._away.values() if end > now]
        if self._failures:
            times.append(max(now, self._failures[0].at_seconds))
        if any(pod.node is None or pod.draining for pod in self._pods.values()):
            times.append(now + _PENDING_SECONDS)
        return min(times, default=math.inf)

    def _forget_ended(self) -> None:
        members = self.service.members
        ended = [pod.key for pod in self._pods.values() if pod.node is not None and pod.key not in members]
        for key in ended:
            del self._pods[key]
        if ended:
            self._apply_power()

    def _make_ready(self) -> None:
        for pod in self._pods.values():
            if pod.node is not None and not pod.draining and pod.ready_at <= self.fleet.now:
                member = self.service.members[pod.key]
                if member.phase is Phase.STARTING:
                    self.fleet.set_ready(self.service.name, pod.key)

    def _fail(self) -> None:
        now = self.fleet.now
        self._away = {node: end for node, end in self._away.items() if end > now}
        while self._failures and self._failures[0].at_seconds <= now:
            failure = self._failures.pop(0)
            ready = [pod for pod in self._pods.values() if self._is_ready(pod)]
            if not ready:
                continue
            victim = ready[int(self._rng.integers(len(ready)))]
            dead = [victim]
            if failure.kind is FailureKind.NODE and victim.node is not None:
                dead = [pod for pod in self._pods.values() if pod.node == victim.node]
                self._away[victim.node] = now + failure.down_seconds
            for pod in dead:
                self.fleet.kill_pod(self.service.name, pod.key)
                del self._pods[pod.key]

    # Pods

    def _is_ready(self, pod: _Pod) -> bool:
        member = self.service.members.get(pod.key)
        return member is not None and member.phase is Phase.READY

    def _reconcile(self) -> None:
        alive = [pod for pod in self._pods.values() if not pod.draining]
        new = [pod for pod in alive if pod.revision == self.revision]
        old = [pod for pod in alive if pod.revision != self.revision]
        surge = math.ceil(self.lifecycle.max_surge * self._desired) if old else 0
        room = self._desired + surge - len(alive)
        new.extend(self._create() for _ in range(min(room, self._desired - len(new))))
        self._remove(new, len(new) - self._desired)
        if old:
            broken = [pod for pod in old if not self._is_ready(pod)]
            self._remove(broken, len(broken))
            unavailable = math.floor(self.lifecycle.max_unavailable * self._desired)
            if surge == 0 and unavailable == 0:
                unavailable = 1  # as Kubernetes resolves it, or nothing could ever move
            ready = sum(map(self._is_ready, (*new, *old)))
            standing = [pod for pod in old if self._is_ready(pod)]
            self._remove(standing, ready - (self._desired - unavailable) if self._desired else len(standing))
            # Fewer are wanted than when the roll-out began: what is above the surge goes, as long as it serves nothing.
            excess = sum(not pod.draining for pod in self._pods.values()) - self._desired - surge
            idle = [pod for pod in new if pod.key in self._pods and not pod.draining and not self._is_ready(pod)]
            self._remove(idle, excess)
            if surge == 0:
                missing = self._desired - sum(not pod.draining for pod in self._pods.values())
                for _ in range(missing):
                    self._create()
        self._place()

    def _create(self) -> _Pod:
        self._number += 1
        key = (self.namespace, f"{self.service.name.rsplit('/', 1)[-1]}-{self.revision}-{self._number}")
        pod = self._pods[key] = _Pod(key=key, number=self._number, revision=self.revision, created=self.fleet.now)
        self._place()
        return pod

    def _remove(self, pods: Sequence[_Pod], count: int) -> None:
        if count <= 0:
            return
        ordered = sorted(pods, key=lambda pod: (pod.node is not None, self._is_ready(pod), -pod.number))
        for pod in ordered[:count]:
            if pod.node is None:
                del self._pods[pod.key]
                continue
            self.fleet.remove_pod(self.service.name, pod.key, grace_seconds=self.lifecycle.grace_seconds)
            if pod.key in self.service.members:
                pod.draining = True
            else:
                del self._pods[pod.key]

    def _place(self) -> None:
        placed = False
        for pod in self._pods.values():
            if pod.node is not None:
                continue
            hardware = self._hardware[pod.revision]
            for node in self.fleet.inventory.nodes:
                if node in self._away:
                    continue
                try:
                    self.fleet.add_pod(self.service.name, pod.key, node=node, container="vllm", hardware=hardware)
                except NoFreeGpuError:
                    continue
                pod.node, placed = node, True
                spread = math.exp(self.lifecycle.startup_sigma * float(self._rng.standard_normal()))
                pod.ready_at = self.fleet.now + self.lifecycle.startup_seconds * spread
                break
        if placed:
            self._apply_power()

    def _apply_power(self) -> None:
        held = {gpu.uuid for member in self.service.members.values() for gpu in member.gpus}
        for gpu in self.fleet.inventory.all():
            watts, clock = None, None
            if gpu.uuid in held:
                watts, clock = self._limits.get(gpu.uuid, (self._watts, self._clock_mhz))
            if (gpu.requested_watts, gpu.requested_clock_mhz) != (watts, clock):
                self.fleet.set_power(gpu, watts=watts, clock_mhz=clock)


_PHASES = {Phase.STARTING: PodPhase.STARTING, Phase.READY: PodPhase.READY, Phase.DRAINING: PodPhase.DRAINING}
