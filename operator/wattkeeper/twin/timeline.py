"""What a service looked like at regular times: the raw material of pictures and reports."""

from dataclasses import dataclass, field

from wattkeeper.twin.fleet import Fleet, Phase, Service


@dataclass(frozen=True, kw_only=True)
class Point:
    """Means over the interval that ends at `time_seconds`, and the state at its end."""

    time_seconds: float
    requests_per_second: float
    power_watts: float
    """All GPUs that pods of the service hold."""
    ready: int
    starting: int
    draining: int
    cap_watts: float
    """Mean power limit over the GPUs of ready pods; the card's default where there is none."""
    clock_mhz: float
    running: int
    waiting: int
    max_num_batched_tokens: int
    """Of the newest ready pod; 0 without one."""
    max_num_seqs: int


@dataclass(kw_only=True)
class Timeline:
    """Points of one service, one per `interval_seconds`; times count from `begin`."""

    service: Service
    interval_seconds: float
    points: list[Point] = field(default_factory=list)
    _origin: float = 0.0
    _due: float = 0.0
    _time: float = 0.0
    _arrived: int = 0
    _joules: float = 0.0

    def begin(self, now: float) -> None:
        """Forget what was, and call this moment zero."""
        self.points.clear()
        self._origin = self._time = now
        self._due = now + self.interval_seconds
        self._arrived, self._joules = self.service.ledger.arrived, self.service.energy_joules

    def observe(self, fleet: Fleet) -> None:
        """Call after every step of the fleet; a point is taken when one is due."""
        if fleet.now < self._due:
            return
        service, seconds = self.service, fleet.now - self._time
        arrived, joules = service.ledger.arrived, service.energy_joules
        ready = service.ready()
        gpus = [gpu for member in ready for gpu in member.gpus]
        replicas = [member.replica for member in ready if member.replica is not None]
        newest = max(ready, key=lambda member: member.since_seconds, default=None)
        phases = [member.phase for member in service.members.values()]
        if seconds > 0:
            self.points.append(
                Point(
                    time_seconds=fleet.now - self._origin,
                    requests_per_second=(arrived - self._arrived) / seconds,
                    power_watts=(joules - self._joules) / seconds,
                    ready=len(ready),
                    starting=phases.count(Phase.STARTING),
                    draining=phases.count(Phase.DRAINING),
                    cap_watts=sum(gpu.limit_watts for gpu in gpus) / len(gpus) if gpus else 0.0,
                    clock_mhz=sum(gpu.clock_mhz for gpu in gpus) / len(gpus) if gpus else 0.0,
                    running=sum(len(replica.running) for replica in replicas),
                    waiting=sum(len(replica.waiting) for replica in replicas),
                    max_num_batched_tokens=newest.hardware.max_num_batched_tokens if newest else 0,
                    max_num_seqs=newest.hardware.max_num_seqs if newest else 0,
                )
            )
        self._time, self._arrived, self._joules = fleet.now, arrived, joules
        self._due = fleet.now + self.interval_seconds
