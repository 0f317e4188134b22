"""GPUs of simulated nodes: identity, who holds them, their caps, and the energy that each has used."""

import uuid
from dataclasses import dataclass, field

from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.twin.exposition import GpuSample
from wattkeeper.twin.hardware import Card

_UUID_SPACE = uuid.UUID("6a1f9c5e-2f43-4b62-9a55-0c1f6c1d7c11")


class NoFreeGpuError(WattkeeperError):
    """More GPUs are wanted on a node than are free."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The container that a GPU was given to."""

    namespace: str
    pod: str
    container: str


@dataclass(kw_only=True)
class Gpu:
    """One GPU; energy counts from its first sight, as a driver counts from boot."""

    node: str
    index: int
    uuid: str
    card: Card
    holder: Holder | None = None
    requested_watts: float | None = None
    requested_clock_mhz: float | None = None
    power_watts: float = 0.0
    clock_mhz: float = 0.0
    utilisation: float = 0.0
    energy_joules: float = 0.0
    power_window_seconds: float = 1.0
    """`power_watts` is the mean over the last stretch of at least this long."""
    _joules: float = 0.0
    _seconds: float = 0.0

    @property
    def limit_watts(self) -> float:
        """The limit in force: what was asked for, within what the card allows."""
        if self.requested_watts is None:
            return self.card.tdp_watts
        return min(max(self.requested_watts, self.card.minimum_cap_watts), self.card.tdp_watts)

    @property
    def clamped(self) -> bool:
        """Whether the card could not take the watts that were asked for."""
        return self.requested_watts is not None and self.requested_watts != self.limit_watts

    def spend(self, *, joules: float, seconds: float) -> None:
        """Energy used over the last `seconds`."""
        self.energy_joules += joules
        self._joules += joules
        self._seconds += seconds
        if self._seconds >= self.power_window_seconds:
            self.power_watts = self._joules / self._seconds
            self._joules = self._seconds = 0.0

    def sample(self) -> GpuSample:
        """For the exporter."""
        return GpuSample(
            index=self.index,
            uuid=self.uuid,
            node=self.node,
            model_name=self.card.dcgm_name,
            power_watts=self.power_watts,
            energy_joules=self.energy_joules,
            sm_clock_mhz=self.clock_mhz,
            utilisation=self.utilisation,
            limit_watts=self.limit_watts,
            namespace=self.holder.namespace if self.holder else None,
            pod=self.holder.pod if self.holder else None,
            container=self.holder.container if self.holder else None,
        )


def gpu_uuid(node: str, index: int) -> str:
    """The same UUID for the same place in every run."""
    return f"GPU-{uuid.uuid5(_UUID_SPACE, f'{node}/{index}')}"


@dataclass(kw_only=True)
class Inventory:
    """All GPUs by node name."""

    nodes: dict[str, list[Gpu]] = field(default_factory=dict)
    power_window_seconds: float = 1.0

    def ensure(self, node: str, card: Card, count: int) -> None:
        """Know a node with `count` GPUs; GPUs of a known node stay as they are."""
        gpus = self.nodes.setdefault(node, [])
        for index in range(len(gpus), count):
            gpus.append(
                Gpu(
                    node=node,
                    index=index,
                    uuid=gpu_uuid(node, index),
                    card=card,
                    clock_mhz=card.minimum_clock_mhz,
                    power_window_seconds=self.power_window_seconds,
                )
            )

    def assign(self, node: str, count: int, holder: Holder) -> list[Gpu]:
        """Give the lowest free GPUs of a node to a pod; NoFreeGpuError where there are too few."""
        free = [gpu for gpu in self.nodes.get(node, []) if gpu.holder is None]
        if len(free) < count:
            raise NoFreeGpuError(
                f"pod {holder.namespace}/{holder.pod} wants {count} GPUs of node {node}, {len(free)} are free"
            )
        for gpu in free[:count]:
            gpu.holder = holder
        return free[:count]

    def all(self) -> list[Gpu]:
        """Every GPU."""
        return [gpu for gpus in self.nodes.values() for gpu in gpus]

    def by_uuid(self) -> dict[str, Gpu]:
        """Every GPU by its UUID."""
        return {gpu.uuid: gpu for gpu in self.all()}
