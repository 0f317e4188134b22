"""The measured process: the whole operator, Kopf included, with made-up measurements, held to one core.

It runs for a number of passes, notes what each one cost, and ends itself as a cluster would end it, by SIGTERM.
"""

import logging
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from wattkeeper.api.inference_service import MetricsSourceKind
from wattkeeper.controller import kube
from wattkeeper.controller.cache import ClusterCache
from wattkeeper.controller.measure import Measurements
from wattkeeper.controller.passes import Pass
from wattkeeper.controller.run import Operator, RunOptions
from wattkeeper.controller.settings import OperatorSettings, ReplaySettings
from wattkeeper.telemetry.collector import Collector
from wattkeeper.telemetry.synthetic import SyntheticService, SyntheticSource

_COLLECT_SECONDS = 5.0
_SETTLING_PASSES = 4


@dataclass(frozen=True, kw_only=True)
class OperatorJob:
    """What the process is to do."""

    kubeconfig: str
    services: int
    pods_per_service: int
    seed: int
    tick_seconds: float
    steady_passes: int
    """Passes after the start."""
    most_passes: int
    """Passes after which it ends in any case."""
    day_seconds: float
    core: int | None
    """Processor to stay on; None: any."""
    replay_workers: int = 1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The process right after one pass; counters count from the start."""

    at_seconds: float
    """Wall time."""
    done: Pass
    process_cpu_seconds: float
    peak_rss_bytes: int
    requests: dict[str, int]
    """Of the loop and its caches, by verb; Kopf's own are not counted."""
    status_writes: int
    actions: dict[str, int]
    observed: int
    """Services with fresh measurements."""
    collect_seconds: float | None


@dataclass(kw_only=True)
class _Pods:
    """The ready pods of a service as the operator's cache knows them; the cache watches before anything collects."""

    cache: ClusterCache | None = None

    def __call__(self, service: SyntheticService) -> tuple[str, ...]:
        if self.cache is None:
            return ()
        found = self.cache.pods(service.namespace, {"matchLabels": {"app": service.name}})
        return tuple(pod["metadata"]["name"] for pod in found if _ready(pod))


def _ready(pod: kube.Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


@dataclass(kw_only=True)
class _Recorder:
    """Samples every pass and ends the process after the last one."""

    operator: Operator
    collector: Collector
    job: OperatorJob
    samples: list[Sample] = field(default_factory=list)

    def __call__(self, done: Pass) -> None:
        metrics = self.operator.metrics
        requests: dict[str, int] = {}
        for (verb, _), count in list(self.operator.kube.requests.items()):
            requests[verb] = requests.get(verb, 0) + count
        actions: dict[str, int] = {}
        for sample in next(iter(metrics.actions.collect())).samples:
            if sample.name.endswith("_total"):
                actions[sample.labels["action"]] = actions.get(sample.labels["action"], 0) + int(sample.value)
        self.samples.append(
            Sample(
                at_seconds=time.time(),
                done=done,
                process_cpu_seconds=time.process_time(),
                peak_rss_bytes=peak_rss_bytes(),
                requests=requests,
                status_writes=int(metrics.registry.get_sample_value("wattkeeper_loop_status_writes_total") or 0),
                actions=actions,
                observed=sum(state.workload is not None for state in self.operator.loop.states.values()),
                collect_seconds=self.collector.last_duration_seconds,
            )
        )
        begun = starting(self.samples, self.job.services)
        if len(self.samples) in (begun + self.job.steady_passes, self.job.most_passes):
            os.kill(os.getpid(), signal.SIGTERM)


def starting(samples: Sequence[Sample], services: int) -> int:
    """How many passes the start takes: until all services are measured, and those in which first learning settles."""
    for index, sample in enumerate(samples):
        if sample.observed >= services:
            return index + 1 + _SETTLING_PASSES
    return len(samples) + 1 + _SETTLING_PASSES


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far.

    Linux' own figure where there is one: that of `getrusage` begins with the parent's.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found is not None:
        return int(found.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(job: OperatorJob, link: Connection) -> None:
    """Run the operator and send the samples. The main function of the process."""
    if job.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {job.core})
    logging.basicConfig(level=logging.WARNING)
    pods = _Pods()
    source = SyntheticSource(
        services=job.services,
        pods_per_service=job.pods_per_service,
        seed=job.seed,
        day_seconds=job.day_seconds,
        pods_of=pods,
    )
    collector = Collector(source, _COLLECT_SECONDS)
    operator = Operator(
        RunOptions(
            api=kube.load_client(job.kubeconfig),
            settings=OperatorSettings(
                tick_seconds=job.tick_seconds,
                default_source=MetricsSourceKind.PROMETHEUS,
                replays=ReplaySettings(workers=job.replay_workers),
            ),
            http_port=0,
            lease=False,
        ),
        Measurements(default=MetricsSourceKind.PROMETHEUS, prometheus=collector),
    )
    pods.cache = operator.cache
    recorder = _Recorder(operator=operator, collector=collector, job=job)
    operator.loop.on_pass = recorder
    operator.run()
    link.send(recorder.samples)
    link.close()
