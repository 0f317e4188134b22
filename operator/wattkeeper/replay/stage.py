"""What a replay is played on: service, GPUs, life of pods, and how metrics reach a policy. All facts, no state."""

import math
from dataclasses import dataclass, field

from wattkeeper.domain.engine import EngineSettings
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.plan import Slo
from wattkeeper.twin.deployment import Failure, Lifecycle

SERVICE = "service"
"""Name of the service in the simulated fleet."""
EPOCH_SECONDS = 1_767_225_600.0
"""Unix time of the beginning of every trace, for policies that want a clock: 2026-01-01 00:00 UTC."""


class ReplayError(WattkeeperError):
    """A replay cannot be played as asked."""


@dataclass(frozen=True, kw_only=True)
class MetricsPath:
    """From the pods' counters to what a policy sees: scrapes, their delay, and what goes missing. Seconds."""

    interval_seconds: float = 15.0
    """Between two scrapes of one pod; each pod has an offset of its own."""
    offset_step_seconds: float = 2.5
    """Offsets are whole multiples of this."""
    delay_seconds: float = 1.0
    """From a scrape to being seen by a query."""
    collect_seconds: float = 5.0
    """Between two queries of the operator's collector."""
    rate_window_seconds: float = 60.0
    length_window_seconds: float = 300.0
    lost_share: float = 0.0
    """Of scrapes that fail, 0..1, at random."""
    outages: tuple[tuple[float, float], ...] = ()
    """(begin, end) on the trace's clock: nothing is scraped, and no query is answered."""

    def __post_init__(self) -> None:
        times = (self.interval_seconds, self.offset_step_seconds, self.collect_seconds, self.rate_window_seconds)
        if not all(math.isfinite(each) and each > 0 for each in times) or not 0 <= self.delay_seconds < math.inf:
            raise ReplayError("intervals and windows of the metrics must be positive, the delay not negative")
        if not 0.0 <= self.lost_share < 1.0:
            raise ReplayError(f"the share of lost scrapes must lie in [0, 1), not {self.lost_share:g}")
        if any(not 0.0 <= begin < end for begin, end in self.outages):
            raise ReplayError("an outage of the metrics needs a begin from zero up and an end after it")

    @property
    def slots(self) -> int:
        """Number of different offsets."""
        return max(1, round(self.interval_seconds / self.offset_step_seconds))

    def out(self, time_seconds: float) -> bool:
        """Whether an outage covers this time."""
        return any(begin <= time_seconds < end for begin, end in self.outages)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One service on its GPUs."""

    model: str
    accelerator: str
    engine: EngineSettings
    namespace: str = "replay"
    """Of its pods."""
    slo: Slo
    gpus: int
    """Of the whole fleet."""
    gpus_per_node: int = 8
    replicas: int
    """At the beginning, ready at once."""
    min_replicas: int = 1
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    failures: tuple[Failure, ...] = ()
    router: str = "least-outstanding"
    parked_counts: bool = True
    """Whether GPUs that no pod holds are in the energy."""
    metrics: MetricsPath = field(default_factory=MetricsPath)

    def __post_init__(self) -> None:
        if self.gpus < self.gpus_per_replica or self.gpus_per_node < self.gpus_per_replica:
            raise ReplayError(
                f"one replica needs {self.gpus_per_replica} GPUs of one node; there are {self.gpus} GPUs, "
                f"{self.gpus_per_node} to a node"
            )
        if not 1 <= self.replicas <= self.max_replicas:
            raise ReplayError(
                f"{self.replicas} replicas do not fit on {self.gpus} GPUs, which hold {self.max_replicas}: give more "
                "--gpus or fewer --replicas"
            )

    @property
    def gpus_per_replica(self) -> int:
        """Tensor times pipeline parallel."""
        return self.engine.tensor_parallel_size * self.engine.pipeline_parallel_size

    @property
    def node_sizes(self) -> tuple[int, ...]:
        """GPUs of each node; the last one may have fewer."""
        whole, rest = divmod(self.gpus, self.gpus_per_node)
        return (self.gpus_per_node,) * whole + ((rest,) if rest else ())

    @property
    def max_replicas(self) -> int:
        """As many as there are GPUs for."""
        return sum(size // self.gpus_per_replica for size in self.node_sizes)
