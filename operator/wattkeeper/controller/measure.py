"""The sources of measurements of one operator: Prometheus, direct scrape, or both; each with its own collector."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.controller.service import Service
from wattkeeper.domain.observation import PodReading
from wattkeeper.telemetry.collector import Collector
from wattkeeper.telemetry.pages import ScrapeTarget
from wattkeeper.telemetry.scrape import ScrapeSource
from wattkeeper.telemetry.source import MetricsSource, Snapshot

_RATES = (
    "finished_per_second",
    "prompt_tokens_per_second",
    "generation_tokens_per_second",
    "in_system_growth_per_second",
    "preemptions_per_second",
    "prefix_queries_per_second",
    "prefix_hits_per_second",
)


@dataclass(frozen=True, kw_only=True)
class SpedUpSource:
    """A source whose world runs `speed_up` times faster than the wall clock.

    Its rates per wall second become rates per second of decision time. Only simulations need it.
    """

    source: MetricsSource
    speed_up: float

    def collect(self, now_seconds: float) -> Snapshot:
        """Read the source and divide its rates."""
        snapshot = self.source.collect(now_seconds)
        pods = {key: self._slowed(reading) for key, reading in snapshot.pods.items()}
        return replace(snapshot, pods=pods)

    def _slowed(self, reading: PodReading) -> PodReading:
        rates = {name: value / self.speed_up for name in _RATES if (value := getattr(reading, name)) is not None}
        return replace(reading, **rates)


@dataclass(frozen=True, kw_only=True)
class ScrapeAddresses:
    """Where to scrape, as templates over {namespace}, {pod}, {pod_ip}, {port}, {path}, {node} and {node_ip}."""

    pod_url: str = "http://{pod_ip}:{port}{path}"
    gpu_url: str = "http://{node_ip}:9400/metrics"
    """The power exporter of a node; empty: none."""


@dataclass(kw_only=True)
class Measurements:
    """All collectors of the operator. Either may be absent."""

    default: MetricsSourceKind
    prometheus: Collector | None = None
    scrape: Collector | None = None
    scrape_source: ScrapeSource | None = None
    addresses: ScrapeAddresses = field(default_factory=ScrapeAddresses)

    def start(self) -> None:
        """Start the collectors' threads."""
        for collector in self._collectors():
            collector.start()

    def stop(self) -> None:
        """Stop the collectors' threads."""
        for collector in self._collectors():
            collector.stop()

    def _collectors(self) -> list[Collector]:
        return [collector for collector in (self.prometheus, self.scrape) if collector is not None]

    def of(self, service: Service) -> tuple[Snapshot | None, str | None]:
        """Latest snapshot of the service's source, and why the last collection failed, if it did."""
        kind, collector = service.spec.metrics.source or self.default, self._collector(service)
        if collector is None:
            return None, (
                f"spec.metrics.source is {kind.value}, but the operator runs without it: "
                + (
                    "start it with --prometheus-url"
                    if kind is MetricsSourceKind.PROMETHEUS
                    else "start it with --scrape"
                )
            )
        return collector.latest(), collector.last_error

    def since(self, service: Service, time_seconds: float) -> tuple[Snapshot, ...]:
        """Snapshots of the service's source taken after `time_seconds`, in their order."""
        collector = self._collector(service)
        return () if collector is None else collector.since(time_seconds)

    def _collector(self, service: Service) -> Collector | None:
        kind = service.spec.metrics.source or self.default
        return self.prometheus if kind is MetricsSourceKind.PROMETHEUS else self.scrape

    def aim(self, services: Iterable[Service], node_addresses: dict[str, str]) -> None:
        """Tell the scraper which pods and which nodes' exporters to read now."""
        if self.scrape_source is None:
            return
        targets = []
        nodes: set[str] = set()
        for service in services:
            if (service.spec.metrics.source or self.default) is not MetricsSourceKind.SCRAPE:
                continue
            for pod in service.pods:
                address = (pod.get("status") or {}).get("podIP")
                if address is None:
                    continue
                name, node = pod["metadata"]["name"], pod["spec"].get("nodeName") or ""
                url = self.addresses.pod_url.format(
                    namespace=service.namespace,
                    pod=name,
                    pod_ip=f"[{address}]" if ":" in address else address,
                    port=service.spec.metrics.port,
                    path=service.spec.metrics.path,
                    node=node,
                    node_ip=node_addresses.get(node, node),
                )
                targets.append(ScrapeTarget(url=url, namespace=service.namespace, pod=name))
                nodes.add(node)
        if self.addresses.gpu_url:
            for node in sorted(nodes):
                url = self.addresses.gpu_url.format(node=node, node_ip=node_addresses.get(node, node))
                targets.append(ScrapeTarget(url=url, role="gpu"))
        self.scrape_source.set_targets(targets)
