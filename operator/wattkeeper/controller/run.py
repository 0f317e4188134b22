"""The operator process: wiring, start and stop."""

import asyncio
import logging
import os
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path

import kopf
from kubernetes import client

from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.controller import garbage, handlers
from wattkeeper.controller.act import Actor
from wattkeeper.controller.cache import ClusterCache
from wattkeeper.controller.clock import Clock
from wattkeeper.controller.events import Recorder
from wattkeeper.controller.http import HealthServer
from wattkeeper.controller.kube import Kube
from wattkeeper.controller.lease import Leadership
from wattkeeper.controller.loop import FleetLoop
from wattkeeper.controller.measure import Measurements, ScrapeAddresses, SpedUpSource
from wattkeeper.controller.metrics import OperatorMetrics
from wattkeeper.controller.replays import Replays
from wattkeeper.controller.settings import OperatorSettings
from wattkeeper.energy.model import EnergyModel
from wattkeeper.queueing import correction
from wattkeeper.telemetry.collector import Collector
from wattkeeper.telemetry.prometheus import PrometheusSettings, PrometheusSource
from wattkeeper.telemetry.scrape import ScrapeSettings, ScrapeSource
from wattkeeper.telemetry.source import MetricsSource

_log = logging.getLogger(__name__)
_REPEAT_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the command line decides beside the settings."""

    api: client.ApiClient
    settings: OperatorSettings
    prometheus: PrometheusSettings | None = None
    scrape: ScrapeSettings | None = None
    addresses: ScrapeAddresses = field(default_factory=ScrapeAddresses)
    collect_seconds: float = 5.0
    http_port: int = 8080
    energy_model: Path | None = None
    lease: bool = True


class Operator:
    """One operator in this process. `start` and `stop` are for tests and benchmarks; `run` is the whole life."""

    def __init__(
        self, options: RunOptions, measurements: Measurements | None = None, *, clock: Clock | None = None
    ) -> None:
        """`measurements` and `clock` replace those that the options describe (benchmarks, tests)."""
        settings = options.settings
        correction.shipped()  # a file that cannot be used is an error here, not in every pass
        self.options = options
        self.clock = clock or Clock(speed_up=settings.speed_up)
        self.metrics = OperatorMetrics()
        self.kube = Kube(
            api=options.api, on_request=lambda verb, code: self.metrics.api_requests.labels(verb, str(code)).inc()
        )
        self.cache = ClusterCache(kube=self.kube, namespaces=settings.namespaces)
        self.actor = Actor(kube=self.kube, cap_ttl_seconds=settings.cap_ttl_seconds)
        self.measurements = measurements or _measurements(options)
        self.replays = (
            Replays(settings=settings.replays, tick_seconds=settings.tick_seconds, metrics=self.metrics)
            if settings.replays.workers
            else None
        )
        self.loop = FleetLoop(
            cache=self.cache,
            kube=self.kube,
            actor=self.actor,
            recorder=Recorder(kube=self.kube),
            measurements=self.measurements,
            energy=_energy_model(options.energy_model),
            settings=settings,
            clock=self.clock,
            metrics=self.metrics,
            replays=self.replays,
        )
        self.http = HealthServer(port=options.http_port, registry=self.metrics.registry, health=self.loop.health)

    def start(self) -> None:
        """Watch the cluster, collect, tick. Raises KubeError where the cluster does not let us."""
        self.loop.health.acting_since = self.clock.wall()
        self.cache.start()
        self.measurements.start()
        if self.replays is not None:
            self.replays.start()
        self.loop.start()

    def stop(self) -> None:
        """Stop in the reverse order. Caps stay until they expire: a successor renews them."""
        self.loop.stop()
        if self.replays is not None:
            self.replays.stop()
        self.measurements.stop()
        self.cache.stop()

    def run(self) -> None:
        """Take the Lease, work until told to stop, hand the Lease back."""
        stopping = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())  # until Kopf catches it: a standby, too, ends cleanly
        self.http.start()
        leadership: Leadership | None = None
        try:
            if self.options.lease:
                leadership = Leadership(api=self.options.api, namespace=self.options.settings.operator_namespace)
                if not leadership.acquire(stopping):
                    return
                leadership.keep(on_lost=_leave_at_once)
            self.loop.tidy = garbage.tidy
            self.start()
            _log.info("keeping %s", ", ".join(self.options.settings.namespaces) or "all namespaces")
            asyncio.run(self._run_kopf(stopping))
        finally:
            self.stop()
            if leadership is not None:
                leadership.release()
            self.http.stop()

    async def _run_kopf(self, stopping: threading.Event) -> None:
        """Until SIGTERM or SIGINT, which Kopf catches; `stopping` is set by one that came before."""
        kopf_settings = kopf.OperatorSettings()
        handlers.configure(kopf_settings)
        kopf_settings.scanning.disabled = bool(self.options.settings.namespaces)

        async def repeat() -> None:
            """A SIGTERM from before Kopf could catch it is sent again until Kopf does."""
            while True:
                if stopping.is_set():
                    stopping.clear()
                    signal.raise_signal(signal.SIGTERM)
                await asyncio.sleep(_REPEAT_SECONDS)

        repeater = asyncio.create_task(repeat())
        try:
            await kopf.operator(
                registry=handlers.registry(self.actor, self.loop.wake, self.options.api.configuration),
                settings=kopf_settings,
                standalone=True,
                clusterwide=not self.options.settings.namespaces,
                namespaces=self.options.settings.namespaces,
                memo=kopf.Memo(),
            )
        finally:
            repeater.cancel()


def _leave_at_once() -> None:
    """Another operator may act from now on: no clean-up that could write."""
    os._exit(1)


def _energy_model(path: Path | None) -> EnergyModel:
    """A file that cannot be used costs the learned part, not the operator: every service says so in its conditions.

    Raises ModelFileError: a file was named and is not there.
    """
    model = EnergyModel.load_or_physics(path)
    if model.problem:
        _log.error("physics alone foresees power, with wide intervals: %s", model.problem)
    return model


def _measurements(options: RunOptions) -> Measurements:
    settings = options.settings
    scrape_source = ScrapeSource(options.scrape) if options.scrape is not None else None
    prometheus_source = PrometheusSource(options.prometheus) if options.prometheus is not None else None

    def collector(source: MetricsSource | None) -> Collector | None:
        if source is None:
            return None
        world = source if settings.speed_up == 1.0 else SpedUpSource(source=source, speed_up=settings.speed_up)
        return Collector(world, options.collect_seconds)

    return Measurements(
        default=settings.default_source if prometheus_source is not None else MetricsSourceKind.SCRAPE,
        prometheus=collector(prometheus_source),
        scrape=collector(scrape_source),
        scrape_source=scrape_source,
        addresses=options.addresses,
    )
