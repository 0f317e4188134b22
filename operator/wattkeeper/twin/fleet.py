"""Services of many replicas: arrivals, router, pods that start and drain, energy per GPU and per service.

A router (`twin.routers`) learns of completions once per `ROUTER_PERIOD_SECONDS` (as a gateway learns from its last look
at the pods) and counts what it sent itself at once; the period begins with an arrival, so nothing is simulated in vain
while there is no traffic.

A pod that is taken away drains: it gets no new requests and has `grace_seconds` to finish those it has; what is left is
lost. Without any ready pod requests are refused.

With `Service.simulated_replicas` only so many replicas of each kind are played, and the others mirror them
(`twin.sampling`).
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

from wattkeeper.traces.trace import Arrival, Trace
from wattkeeper.twin.arrivals import ArrivalQueue, Batch
from wattkeeper.twin.counters import EngineCounters
from wattkeeper.twin.hardware import ReplicaHardware
from wattkeeper.twin.ledger import Ledger, SloTargets
from wattkeeper.twin.nodes import Gpu, Holder, Inventory
from wattkeeper.twin.replica import Replica
from wattkeeper.twin.request import Request
from wattkeeper.twin.routers import LeastOutstanding, PrefixAware, Router
from wattkeeper.twin.sampling import Group, Thinning, split

ROUTER_PERIOD_SECONDS = 0.25
NO_CHOICE_SECONDS = 30.0
"""Instead, where there is one replica to choose from."""
SETTLING_SECONDS = 60.0
"""A new pod is empty, so a router sends it more than its share: so long it is no mirror of others."""
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
    source: "Member | None" = None
    """The pod that this one mirrors; `replica` is then the other's."""
    counted: EngineCounters | None = None
    """What its counters say beyond those of `replica`, where it has mirrored others; None: nothing."""
    ready_seconds: float = float("inf")
    """When it began to take requests."""
    deadline_seconds: float = float("inf")
    energy_joules: float = 0.0
    """Per GPU, from scheduling on."""
    busy_seconds: float = 0.0
    booked_seconds: float = 0.0
    """Simulated time up to which energy was booked to the GPUs."""

    @property
    def counters(self) -> EngineCounters | None:
        """What its metrics page adds up; None while it starts."""
        if self.replica is None or self.counted is None:
            return None if self.replica is None else self.replica.counters
        return self.replica.counters.plus(self.counted)

    def mirror(self, source: "Member") -> None:
        """Stand in the place of another from now on; its own counters go on from where they were."""
        if self.replica is not None and source.replica is not None and self.replica is not source.replica:
            before = self.counters or self.replica.counters
            self.counted = before.plus(source.replica.counters, times=-1)
        self.source, self.replica = source, source.replica

    @property
    def power(self) -> tuple[float | None, float | None]:
        """(watts, MHz) in force: its GPUs run in step, so the slowest sets the pace."""
        locks = [gpu.requested_clock_mhz for gpu in self.gpus if gpu.requested_clock_mhz is not None]
        return min((gpu.limit_watts for gpu in self.gpus), default=None), min(locks, default=None)


@dataclass(kw_only=True)
class Service:
    """Pods behind one router. Energy is that of the GPUs its pods hold, from scheduling to the end of draining."""

    name: str
    slo: SloTargets
    arrivals: Trace | Iterator[Arrival]
    start_seconds: float = 0.0
    """Simulated time of the trace's zero."""
    router: Router = field(default_factory=LeastOutstanding)
    simulated_replicas: int | None = None
    """Of each kind, at most; None: all are played."""
    members: dict[PodKey, Member] = field(default_factory=dict)
    energy_joules: float = 0.0
    startup_joules: float = 0.0
    """Of `energy_joules`, by pods that start."""
    idle_joules: float = 0.0
    """Of `energy_joules`, by engines without a request."""
    gpu_seconds: float = 0.0
    ledger: Ledger = field(init=False)
    thinning: Thinning = field(init=False, default_factory=Thinning)
    retired: list[Replica] = field(init=False, default_factory=list)
    """No longer pods of their own: they finish what they have."""
    _queue: ArrivalQueue = field(init=False)
    _settled_at: float = field(init=False, default=float("inf"))

    def __post_init__(self) -> None:
        if self.simulated_replicas is not None:
            if self.simulated_replicas < 1:
                raise ValueError(f"at least one replica must be simulated, not {self.simulated_replicas}")
            if isinstance(self.router, PrefixAware):
                raise ValueError("the prefix-aware router needs every replica simulated: its replicas are not alike")
        self.ledger = Ledger(self.slo)
        self._queue = ArrivalQueue(self.arrivals)

    def begin(self, now: float) -> None:
        """Let the trace start now, and count energy from now on."""
        self.start_seconds = now
        self.energy_joules = self.gpu_seconds = self.startup_joules = self.idle_joules = 0.0

    def ready(self) -> list[Member]:
        """Pods that take requests."""
        return [member for member in self.members.values() if member.phase is Phase.READY]

    def choices(self) -> int:
        """Replicas among which the router chooses."""
        if self.simulated_replicas is not None:
            return sum(len(group.replicas) for group in self.thinning.groups)
        return len(self.ready())

    def next_arrival_seconds(self) -> float:
        """Simulated time of the next request; infinite at the end of the trace."""
        return self.start_seconds + self._queue.next_seconds

    def take_until(self, end_seconds: float) -> Batch:
        """Requests that arrive before a time."""
        return self._queue.take_until(end_seconds - self.start_seconds)

    def route(self, batch: Batch) -> None:
        """Send each request to a ready pod; without one all are lost."""
        ledger, start, thinning = self.ledger, self.start_seconds, self.thinning
        ledger.arrived += len(batch)
        if self.simulated_replicas is not None and thinning.groups:
            last = self._queue.next_seconds == float("inf")
            thinning.route(batch, start_seconds=start, router=self.router, last=last)
            return
        replicas = [member.replica for member in self.ready() if member.replica is not None]
        if not replicas:
            ledger.lose(len(batch) + thinning.held, "no_ready_pod")
            thinning.held = 0
            return
        times = [start + time for time in batch.times_seconds]
        columns = (batch.prompt_tokens, batch.output_tokens, batch.cached_tokens, batch.blocks)
        self.router.route(list(map(Request, times, *columns)), replicas)

    def played(self) -> Iterator[Replica]:
        """Replicas that hold requests of their own."""
        for member in self.members.values():
            if member.replica is not None and member.source is None:
                yield member.replica
        yield from self.retired

    def set_apart(self, member: Member) -> None:
        """Before a pod ends: give it, and those that mirror it, states of their own."""
        source = member.source
        if source is not None and source.replica is not None:
            # The copy keeps what the others stand for, so it is the source that goes on with it.
            member.replica, source.replica = source.replica, split(source.replica)
            member.source = None
            member.energy_joules, member.busy_seconds = source.energy_joules, source.busy_seconds
            heir = source
        else:
            heirs = self._mirrors(member)
            if not heirs or member.replica is None:
                return
            heir = heirs[0]
            heir.replica, heir.source = split(member.replica), None
            heir.energy_joules, heir.busy_seconds = member.energy_joules, member.busy_seconds
            for other in heirs[1:]:
                other.source = heir
        for other in self._mirrors(heir):
            other.replica = heir.replica

    def _mirrors(self, member: Member) -> list[Member]:
        return [other for other in self.members.values() if other.source is member]

    def must_regroup(self, now: float) -> bool:
        """Whether a new pod has become like the others."""
        return now >= self._settled_at

    def regroup(self, now: float) -> None:
        """Say anew which ready pods are played and which mirror them."""
        most = self.simulated_replicas
        self._settled_at = float("inf")
        if most is None:
            return
        kinds: dict[object, list[Member]] = {}
        for member in self.ready():
            settled = member.ready_seconds + SETTLING_SECONDS
            if now < settled:
                self._settled_at = min(self._settled_at, settled)
            kind = (member.hardware, member.power, settled if now < settled else None)
            kinds.setdefault(kind, []).append(member)
        played: list[tuple[int, list[Member]]] = []
        for members in kinds.values():
            own = [member for member in members if member.source is None]
            for member in members:
                strange = member.source is not None and member.source not in own
                if strange and len(own) < most:
                    self.set_apart(member)
                    own.append(member)
            for member in own[most:]:
                if member.replica is not None and member.replica.outstanding:
                    self.retired.append(member.replica)
                heir = next((each for each in own[:most]), member)
                for other in self._mirrors(member):
                    other.mirror(heir)
            own = own[:most]
            mirrors = [member for member in members if member not in own]
            for index, member in enumerate(mirrors):
                member.mirror(own[index % len(own)])
            played.append((len(members), own))
        # Only now: setting a pod apart may give the one that it mirrored another replica.
        groups = [
            Group(pods=pods, replicas=[member.replica for member in own if member.replica is not None])
            for pods, own in played
        ]
        self.thinning.regroup(groups)


class Fleet:
    """All services on one inventory of GPUs; `advance` moves the simulated clock."""

    def __init__(self, inventory: Inventory, *, now: float = 0.0) -> None:
        self.inventory = inventory
        self.services: dict[str, Service] = {}
        self.now = now
        self.parked_joules = 0.0
        """By GPUs that no pod holds."""
        self._regroup = False

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
            member.phase, member.ready_seconds = Phase.READY, self.now
            member.replica = Replica(member.hardware, now=self.now)
            self._apply_power(member)
            self._regroup = True

    def remove_pod(self, service: str, key: PodKey, *, grace_seconds: float) -> None:
        """The pod is to end: it drains for at most `grace_seconds`."""
        member = self.services[service].members[key]
        if member.phase is Phase.STARTING:
            self._release(self.services[service], member, "pod_ended")
        elif member.phase is Phase.READY:
            self.services[service].set_apart(member)
            self._regroup = True
            member.phase = Phase.DRAINING
            member.deadline_seconds = self.now + grace_seconds

    def kill_pod(self, service: str, key: PodKey) -> None:
        """The pod is gone without draining; its requests are lost."""
        member = self.services[service].members[key]
        self.services[service].set_apart(member)
        self._regroup = True
        self._release(self.services[service], member, "pod_ended")

    def set_power(self, gpu: Gpu, *, watts: float | None, clock_mhz: float | None) -> None:
        """Ask for a power limit and a clock lock; None restores the card's default."""
        gpu.requested_watts, gpu.requested_clock_mhz = watts, clock_mhz
        for service in self.services.values():
            for member in service.members.values():
                if any(each is gpu for each in member.gpus):
                    self._apply_power(member)

    def _apply_power(self, member: Member) -> None:
        self._regroup = True
        if member.replica is not None and member.source is None:
            watts, clock = member.power
            member.replica.set_power(cap_watts=watts, clock_mhz=clock)

    # Time

    def advance(self, until: float) -> None:
        """Simulate up to `until`; a GPU's power is its mean over a short window."""
        while self.now < until:
            deadlines = (m.deadline_seconds for service in self.services.values() for m in service.members.values())
            self._advance(min(until, *(each for each in deadlines if each > self.now), until))

    def _advance(self, until: float) -> None:
        for service in self.services.values():
            if self._regroup or service.must_regroup(self.now):
                service.regroup(self.now)
            self._play(service, until)
        self._regroup = False
        before, self.now = self.now, until
        for gpu in self.inventory.all():
            if gpu.holder is None:
                seconds = until - before
                self.parked_joules += gpu.card.parked_watts * seconds
                gpu.spend(joules=gpu.card.parked_watts * seconds, seconds=seconds)
                gpu.clock_mhz, gpu.utilisation = gpu.card.minimum_clock_mhz, 0.0
        for service in self.services.values():
            spent = {
                member.key: self._book(service, member) for member in service.members.values() if not member.source
            }
            for member in list(service.members.values()):
                if member.source is not None:
                    self._charge(service, member, *spent[member.source.key])
                drained = member.replica is not None and not member.replica.outstanding
                if member.phase is Phase.DRAINING and (drained or until >= member.deadline_seconds):
                    self._release(service, member, "grace_over")

    def _play(self, service: Service, until: float) -> None:
        clock = self.now
        period = ROUTER_PERIOD_SECONDS if service.choices() > 1 else NO_CHOICE_SECONDS
        while (arrival := service.next_arrival_seconds()) < until:
            if arrival > clock + period:
                self._run(service, arrival)
            clock = min(until, max(clock, arrival) + period)
            service.route(service.take_until(clock))
            self._run(service, clock)
        self._run(service, until)

    def _run(self, service: Service, until: float) -> None:
        ledger = service.ledger
        for replica in service.played():
            replica.run(until)
            if replica.finished:
                ledger.finish(replica.finished)
                replica.finished.clear()
            if replica.refused:
                for request in replica.refused:
                    ledger.lose(request.weight, request.refusal)
                replica.refused.clear()
        if service.retired:
            service.retired = [replica for replica in service.retired if replica.outstanding]

    def _book(self, service: Service, member: Member) -> tuple[float, float, float]:
        """Charge what a pod used since the last booking; returns joules and busy share per GPU, and MHz."""
        replica = member.replica
        seconds = self.now - member.booked_seconds
        card = member.hardware.card
        joules, busy, clock = card.startup_watts * seconds, 0.0, card.maximum_clock_mhz
        if replica is not None:
            joules = replica.energy_joules - member.energy_joules
            busy = (replica.busy_seconds - member.busy_seconds) / seconds if seconds > 0 else 0.0
            clock = replica.clock_mhz
        if seconds > 0:
            if replica is not None:
                member.energy_joules, member.busy_seconds = replica.energy_joules, replica.busy_seconds
            self._charge(service, member, joules, busy, clock)
        return joules, busy, clock

    def _charge(self, service: Service, member: Member, joules: float, busy: float, clock: float) -> None:
        """To the pod's GPUs and its service: joules per GPU since the last booking."""
        seconds, gpus = self.now - member.booked_seconds, len(member.gpus)
        if seconds <= 0:
            return
        for gpu in member.gpus:
            gpu.spend(joules=joules, seconds=seconds)
            gpu.clock_mhz, gpu.utilisation = clock, min(1.0, busy)
        if member.replica is None:
            service.startup_joules += joules * gpus
        else:
            service.idle_joules += member.hardware.idle_watts * max(0.0, 1.0 - busy) * seconds * gpus
        member.booked_seconds = self.now
        service.energy_joules += joules * gpus
        service.gpu_seconds += seconds * gpus

    def _release(self, service: Service, member: Member, reason: str) -> None:
        self._book(service, member)
        if member.replica is not None:
            lost = member.replica.abort_all()
            service.ledger.lose(sum(request.weight for request in lost), reason)
        for gpu in member.gpus:
            gpu.holder = None
        del service.members[member.key]
