"""What one collection from Prometheus costs the operator: queries, bytes, seconds, for few and for many services.

A server in a process of its own answers every query of `telemetry.promql` with the samples of a made-up fleet, ready
made, so that the figures are those of the operator's side: asking, parsing, putting together. What a Prometheus needs
to evaluate the queries is not in them.
"""

import json
import multiprocessing
import statistics
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any

from rich.table import Table

from wattkeeper.controller import garbage
from wattkeeper.domain.errors import WattkeeperError
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import PodReading
from wattkeeper.telemetry import aliases, promql
from wattkeeper.telemetry.assemble import HISTOGRAM_FIELDS, SCALAR_FIELDS
from wattkeeper.telemetry.prometheus import PrometheusSettings, PrometheusSource
from wattkeeper.telemetry.synthetic import SyntheticSource

_NOW = 1_700_000_000.0
_INTERVAL_SECONDS = 5.0
_START_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class CollectionCost:
    """Collections of one fleet. Seconds are medians over the collections in which all queries are asked."""

    services: int
    pods: int
    queries: int
    """Of a collection that asks everything."""
    queries_between: int
    """Of those in between, which keep the answers that change slowly."""
    answer_bytes: int
    pods_read: int
    seconds: float
    cpu_seconds: float
    cpu_seconds_between: float

    @property
    def cpu_share(self) -> float:
        """Of one core at a collection every five seconds, of which every sixth asks everything."""
        return (self.cpu_seconds + 5 * self.cpu_seconds_between) / (6 * _INTERVAL_SECONDS)


def measure(*, services: int, pods_per_service: int, collections: int = 3, seed: int = 0) -> CollectionCost:
    """Collect from the made-up fleet. Raises WattkeeperError where the server does not start."""
    source = SyntheticSource(services=services, pods_per_service=pods_per_service, seed=seed)
    settings = promql.QuerySettings()
    named = {**promql.engine_queries(settings), **promql.gpu_queries(settings)}
    bodies = _bodies(source.collect(_NOW).pods.values())
    answers = {query: bodies.get(name, _vector([])) for name, query in named.items()}
    garbage.tidy()  # as the operator does
    with _serving(answers) as (url, asked):
        client = PrometheusSource(PrometheusSettings(url=url, queries=settings, timeout_seconds=60.0))
        full: list[tuple[float, float]] = []
        between: list[float] = []
        counts: list[int] = []
        try:
            now = _NOW
            for _ in range(collections):
                # Answers that change slowly are kept for a tenth of their window: asked again once that is over.
                now += settings.length_window_seconds / 10
                for first in (True, False):
                    before, wall, cpu = asked.value, time.perf_counter(), time.process_time()
                    snapshot = client.collect(now if first else now + _INTERVAL_SECONDS)
                    took = time.perf_counter() - wall, time.process_time() - cpu
                    counts.append(asked.value - before)
                    if first:
                        full.append(took)
                    else:
                        between.append(took[1])
        finally:
            client.close()
    return CollectionCost(
        services=services,
        pods=services * pods_per_service,
        queries=max(counts),
        queries_between=min(counts),
        answer_bytes=sum(map(len, answers.values())),
        pods_read=len(snapshot.pods),
        seconds=statistics.median(wall for wall, _ in full),
        cpu_seconds=statistics.median(cpu for _, cpu in full),
        cpu_seconds_between=statistics.median(between),
    )


def table(costs: Iterable[CollectionCost]) -> Table:
    """For people."""
    shown = Table("services", "pods", "queries", "in between", "MiB", "seconds", "CPU s", "core")
    for cost in costs:
        shown.add_row(
            f"{cost.services:,}",
            f"{cost.pods_read:,}",
            str(cost.queries),
            str(cost.queries_between),
            f"{cost.answer_bytes / 2**20:.1f}",
            f"{cost.seconds:.2f}",
            f"{cost.cpu_seconds:.2f}",
            f"{cost.cpu_share:.1%}",
        )
    return shown


def _bodies(readings: Iterable[PodReading]) -> dict[str, bytes]:
    """What Prometheus would answer, by name of the query; names that are not there have no series."""
    pods = list(readings)
    gpus = [(pod, gpu) for pod in pods for gpu in pod.gpus]
    cards = [
        {**_labels(pod), "UUID": gpu.uuid, "Hostname": gpu.node, "modelName": "NVIDIA H100 80GB HBM3"}
        for pod, gpu in gpus
    ]
    found = {
        name: _vector((_labels(pod), getattr(pod, field)) for pod in pods) for name, field in SCALAR_FIELDS.items()
    }
    found |= {
        name: _vector(element for pod in pods for element in _buckets(_labels(pod), getattr(pod, field)))
        for name, field in HISTOGRAM_FIELDS.items()
    }
    found["counters"] = _vector(element for pod in pods for element in _counters(pod))
    found["age"] = _vector((_labels(pod), _NOW - pod.age_seconds) for pod in pods)
    found[aliases.CACHE_INFO] = _vector(({**_labels(pod), **_cache(pod)}, 1.0) for pod in pods)
    found["gpu_age"] = _vector((card, _NOW - 2.0) for card in cards)
    for name, field, scale in (
        (aliases.GPU_POWER, "power_watts", 1.0),
        (aliases.GPU_CLOCK, "sm_clock_mhz", 1.0),
        (aliases.GPU_LIMIT, "power_limit_watts", 1.0),
        (aliases.GPU_USE, "utilisation", 100.0),
        (aliases.GPU_TEMPERATURE, "temperature_celsius", 1.0),
    ):
        found[name] = _vector((card, scale * getattr(gpu, field)) for card, (_, gpu) in zip(cards, gpus, strict=True))
    return found


def _labels(pod: PodReading) -> dict[str, str]:
    return {"namespace": pod.namespace, "pod": pod.pod}


def _cache(pod: PodReading) -> dict[str, str]:
    cache = pod.kv_cache
    if cache is None:
        return {}
    return {
        "engine": "0",
        "num_gpu_blocks": str(cache.num_gpu_blocks),
        "block_size": str(cache.block_size),
        "kv_cache_size_tokens": str(cache.size_tokens),
        "cache_dtype": str(cache.cache_dtype),
    }


def _counters(pod: PodReading) -> Iterator[tuple[dict[str, str], float]]:
    engine = pod.engine
    if engine is None:
        return
    values = {
        aliases.RUNNING: engine.running,
        aliases.WAITING: engine.waiting,
        aliases.KV_USAGE: engine.kv_usage,
        aliases.FINISHED: engine.finished_requests,
        aliases.PROMPT_TOKENS: engine.prompt_tokens,
        aliases.GENERATION_TOKENS: engine.generation_tokens,
        aliases.PREEMPTIONS: engine.preemptions,
        aliases.PREFIX_HITS: engine.cached_prompt_tokens,
    }
    named = {aliases.ENGINE_METRICS[name].names[0]: value for name, value in values.items()}
    iteration, gaps = (aliases.STEP_METRICS[name].names[0] for name in (aliases.ITERATION_TOKENS, aliases.GAPS))
    named |= {
        f"{iteration}_sum": engine.iteration_tokens_sum,
        f"{iteration}_count": engine.iteration_count,
        f"{gaps}_sum": engine.inter_token_seconds_sum,
        f"{gaps}_count": engine.inter_token_count,
    }
    prefix = aliases.DEFAULT_PREFIXES[0]
    for name, value in named.items():
        if value is not None:
            yield {**_labels(pod), "__name__": prefix + name, "engine": "0", "model_name": "m"}, value
    yield {**_labels(pod), promql.PART: promql.TIME_PART}, engine.time_seconds


def _buckets(labels: dict[str, str], histogram: Histogram) -> Iterator[tuple[dict[str, str], float]]:
    for bound, value in zip(histogram.upper_bounds, histogram.cumulative, strict=True):
        yield {**labels, "le": "+Inf" if bound == float("inf") else str(bound)}, value
    yield {**labels, "le": promql.SUM_BUCKET}, histogram.total


def _vector(elements: Iterable[tuple[Mapping[str, str], float]]) -> bytes:
    result = [{"metric": labels, "value": [_NOW, str(value)]} for labels, value in elements]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


@contextmanager
def _serving(answers: Mapping[str, bytes]) -> Iterator[tuple[str, Any]]:
    """The address of a server with these answers, and how often it was asked."""
    context = multiprocessing.get_context("spawn")
    asked = context.Value("l", 0)
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(dict(answers), asked, theirs), daemon=True)
    process.start()
    try:
        if not mine.poll(_START_SECONDS):
            raise WattkeeperError(f"the stand-in for Prometheus did not start within {_START_SECONDS:.0f} s")
        yield f"http://127.0.0.1:{mine.recv()}", asked
    finally:
        process.terminate()
        process.join()
        mine.close()


def _serve(answers: dict[str, bytes], asked: Any, link: Connection) -> None:
    """Answer queries until ended. The main function of the process."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["query"][0]
            with asked.get_lock():
                asked.value += 1
            body = answers[query]
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    link.send(server.server_address[1])
    server.serve_forever()
