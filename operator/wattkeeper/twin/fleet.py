"""Services of many replicas: arrivals, router, pods that start and drain, energy per GPU and per service.

The router sends each request to the ready pod with the fewest outstanding requests. It learns of completions once per
`ROUTER_PERIOD_SECONDS` (as a gateway learns from its last look at the pods) and counts what it sent itself at once; the
period begins with an arrival, so nothing is simulated in vain while there is no traffic.

A pod that is taken away drains: it gets no new requests and has `grace_seconds` to finish those it has; what is left is
lost. Without any ready pod requests are refused.
"""

import enum
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from wattkeeper.traces.trace import Arrival
from wattkeeper.twin.hardware import ReplicaHardware
from wattkeeper.twin.ledger import Ledger, SloTargets
from wattkeeper.twin.nodes import Gpu, Holder, Inventory
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request

ROUTER_PERIOD_SECONDS = 0.25
PodKey = tuple[str, str]
"""(namespace, pod)."""


class Phase(enum.Enum):
    """Where a pod is in its life."""

    STARTING = "Starting"
    READY = "Ready"
    DRAINING = "Draining"


@dataclass(kw_only=True)
class Member:
    """One pod of a service with its GPUs."""

    key: PodKey
    hardware: ReplicaHardware
    gpus: list[Gpu]
    since_seconds: float
    phase: Phase = Phase.STARTING
    replica: Replica | None = None
    deadline_seconds: float = float("inf")
    energy_joules: float = 0.0
    """Per GPU, from scheduling on."""
    busy_seconds: float = 0.0
    booked_seconds: float = 0.0
    """Simulated time up to which energy was booked to the GPUs."""


@dataclass(kw_only=True)
class Service:
    """Pods behind one router. Energy is that of the GPUs its pods hold, from scheduling to the end of draining."""

    name: str
    slo: SloTargets
    arrivals: Iterator[Arrival]
    start_seconds: float = 0.0
    """Simulated time of the trace's zero."""
    members: dict[PodKey, Member] = field(default_factory=dict)
    energy_joules: float = 0.0
    gpu_seconds: float = 0.0
    ledger: Ledger = field(init=False)
    _next: Arrival | None = field(init=False, default=None)
    _turn: "itertools.count[int]" = field(init=False, default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.slo)
        self._next = next(self.arrivals, None)

    def begin(self, now: float) -> None:
        """Let the trace start now, and count energy from now on."""
        self.start_seconds = now
        self.energy_joules = self.gpu_seconds = 0.0

    def ready(self) -> list[Member]:
        """Pods that take requests."""
        return [member for member in self.members.values() if member.phase is Phase.READY]

    def next_arrival_seconds(self) -> float:
        """Simulated time of the next request; infinite at the end of the trace."""
        return float("inf") if self._next is None else self.start_seconds + self._next.time_seconds

    def take_until(self, end_seconds: float) -> list[Request]:
        """Requests that arrive before a time."""
        batch = []
        arrival, start = self._next, self.start_seconds
        limit = end_seconds - start
        while arrival is not None and arrival.time_seconds < limit:
            time, prompt, output, cached = arrival
            batch.append(Request(start + time, prompt, output, cached))
            arrival = next(self.arrivals, None)
        self._next = arrival
        return batch

    def route(self, batch: list[Request]) -> None:
        """Send each request to the ready pod with the fewest outstanding."""
        self.ledger.arrived += len(batch)
        ready = self.ready()
        if not ready:
            self.ledger.lose(len(batch), "no_ready_pod")
            return
        turn = self._turn
        heap = [(m.replica.outstanding, next(turn), m.replica) for m in ready if m.replica is not None]
        heapq.heapify(heap)
        for request in batch:
            outstanding, _, replica = heap[0]
            replica.submit((request,))
            heapq.heapreplace(heap, (outstanding + 1, next(turn), replica))


class Fleet:
    """All services on one inventory of GPUs; `advance` moves the simulated clock."""

    def __init__(self, inventory: Inventory, *, now: float = 0.0) -> None:
        self.inventory = inventory
        self.services: dict[str, Service] = {}
        self.now = now

    # Pods

    def add_pod(self, service: str, key: PodKey, *, node: str, container: str, hardware: ReplicaHardware) -> Member:
        """A pod was scheduled: it holds its GPUs and starts. NoFreeGpuError where the node has too few."""
        holder = Holder(namespace=key[0], pod=key[1], container=container)
        gpus = self.inventory.assign(node, hardware.gpus, holder)
        member = Member(key=key, hardware=hardware, gpus=gpus, since_seconds=self.now, booked_seconds=self.now)
        self.services[service].members[key] = member
        return member

    def set_ready(self, service: str, key: PodKey) -> None:
        """The engine is up: the pod takes requests from now on."""
        member = self.services[service].members[key]
        if member.phase is Phase.STARTING:
            member.phase = Phase.READY
            member.replica = Replica(member.hardware, now=self.now)
            self._apply_power(member)

    def remove_pod(self, service: str, key: PodKey, *, grace_seconds: float) -> None:
        """The pod is to end: it drains for at most `grace_seconds`."""
        member = self.services[service].members[key]
        if member.phase is Phase.STARTING:
            self._release(self.services[service], member)
        elif member.phase is Phase.READY:
            member.phase = Phase.DRAINING
            member.deadline_seconds = self.now + grace_seconds

    def kill_pod(self, service: str, key: PodKey) -> None:
        """The pod is gone without draining; its requests are lost."""
        self._release(self.services[service], self.services[service].members[key])

    def set_power(self, gpu: Gpu, *, watts: float | None, clock_mhz: float | None) -> None:
        """Ask for a power limit and a clock lock; None restores the card's default."""
        gpu.requested_watts, gpu.requested_clock_mhz = watts, clock_mhz
        for service in self.services.values():
            for member in service.members.values():
                if any(each is gpu for each in member.gpus):
                    self._apply_power(member)

    def _apply_power(self, member: Member) -> None:
        # The GPUs of a tensor-parallel group run in step, so the slowest sets the pace.
        if member.replica is not None:
            locks = [gpu.requested_clock_mhz for gpu in member.gpus if gpu.requested_clock_mhz is not None]
            member.replica.set_power(
                cap_watts=min((gpu.limit_watts for gpu in member.gpus), default=None),
                clock_mhz=min(locks, default=None),
            )

    # Time

    def advance(self, until: float) -> None:
        """Simulate up to `until`; a GPU's power is its mean over a short window."""
        while self.now < until:
            deadlines = (m.deadline_seconds for service in self.services.values() for m in service.members.values())
            self._advance(min(until, *(each for each in deadlines if each > self.now), until))

    def _advance(self, until: float) -> None:
        for service in self.services.values():
            self._play(service, until)
        before, self.now = self.now, until
        for gpu in self.inventory.all():
            if gpu.holder is None:
                seconds = until - before
                gpu.spend(joules=gpu.card.parked_watts * seconds, seconds=seconds)
                gpu.clock_mhz, gpu.utilisation = gpu.card.minimum_clock_mhz, 0.0
        for service in self.services.values():
            for member in list(service.members.values()):
                self._book(service, member)
                drained = member.replica is not None and not member.replica.outstanding
                if member.phase is Phase.DRAINING and (drained or until >= member.deadline_seconds):
                    self._release(service, member)

    def _play(self, service: Service, until: float) -> None:
        clock = self.now
        while (arrival := service.next_arrival_seconds()) < until:
            if arrival > clock + ROUTER_PERIOD_SECONDS:
                self._run(service, arrival)
            clock = min(until, max(clock, arrival) + ROUTER_PERIOD_SECONDS)
            service.route(service.take_until(clock))
            self._run(service, clock)
        self._run(service, until)

    def _run(self, service: Service, until: float) -> None:
        ledger = service.ledger
        for member in service.members.values():
            replica = member.replica
            if replica is None:
                continue
            replica.run(until)
            if replica.finished:
                ledger.finish(replica.finished)
                replica.finished.clear()
            if replica.refused:
                for request in replica.refused:
                    ledger.lose(1, request.refusal)
                replica.refused.clear()

    def _book(self, service: Service, member: Member) -> None:
        """Charge the energy since the last booking to the member's GPUs and to the service."""
        replica = member.replica
        seconds = self.now - member.booked_seconds
        if seconds <= 0:
            return
        if replica is None:
            joules, busy, clock = (
                member.hardware.card.startup_watts * seconds,
                0.0,
                member.hardware.card.maximum_clock_mhz,
            )
        else:
            joules = replica.energy_joules - member.energy_joules
            busy = (replica.busy_seconds - member.busy_seconds) / seconds
            clock = replica.clock_mhz
            member.energy_joules, member.busy_seconds = replica.energy_joules, replica.busy_seconds
        for gpu in member.gpus:
            gpu.spend(joules=joules, seconds=seconds)
            gpu.clock_mhz, gpu.utilisation = clock, min(1.0, busy)
        member.booked_seconds = self.now
        service.energy_joules += joules * len(member.gpus)
        service.gpu_seconds += seconds * len(member.gpus)

    def _release(self, service: Service, member: Member) -> None:
        self._book(service, member)
        if member.replica is not None:
            service.ledger.lose(len(member.replica.abort_all()), "pod_ended")
        for gpu in member.gpus:
            gpu.holder = None
        del service.members[member.key]
