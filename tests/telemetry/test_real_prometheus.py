"""Every query run by a real Prometheus over pages of all versions: the alias matrix, duplicates, restarts, gaps."""

import json
import math
import time

import pytest

from e2e.cluster import prometheus as real
from tests.telemetry import pages
from tests.telemetry.servers import Server
from wattkeeper.domain.histogram import Histogram
from wattkeeper.domain.observation import PodReading
from wattkeeper.telemetry.prometheus import PrometheusSettings, PrometheusSource
from wattkeeper.telemetry.promql import QuerySettings

pytestmark = pytest.mark.cluster

RATE = 4.0
"""Requests per second of every busy pod."""
WINDOW_SECONDS = 6.0


class Fleet:
    """Pages as functions of time."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.down: set[str] = set()
        self.restarted_at: float | None = None

    def page(self, path: str, headers: dict[str, str]) -> tuple[int, str]:
        name = path.strip("/").removesuffix("/metrics")
        if name == "sd":
            return 200, json.dumps(self.targets())
        if name in self.down:
            return 503, "gone"
        seconds = time.monotonic() - self.start
        finished = RATE * seconds
        if name == "dcgm":
            return 200, pages.dcgm(
                [
                    {"uuid": "GPU-1", "watts": 300, "pod": "current", "namespace": "team", "limit": 500},
                    {"uuid": "GPU-2", "watts": 310, "pod": "two-engines", "namespace": "team", "host": "hostname"},
                    {"uuid": "GPU-3", "watts": 70},
                    {"uuid": "GPU-4", "watts": 400, "pod": "legacy", "namespace": "team", "mig": "1"},
                ]
            )
        if name == "kepler":
            return 200, (
                'kepler_pod_gpu_watts{pod_name="both",pod_namespace="team",gpu="0",state="running",node_name="n"} 120\n'
                'kepler_pod_gpu_watts{pod_name="both",pod_namespace="team",gpu="1",state="running",node_name="n"} 130\n'
                'kepler_pod_gpu_watts{pod_name="both",pod_namespace="team",gpu="1",state="terminated"} 9\n'
                f'kepler_container_gpu_joules_total{{pod_name="sim",container_namespace="team",mode="dynamic"}} '
                f"{seconds * 80}\n"
                f'kepler_container_gpu_joules_total{{pod_name="sim",container_namespace="team",mode="idle"}} '
                f"{seconds * 20}\n"
                'kepler_node_gpu_watts{gpu_uuid="GPU-9",node_name="n9"} 66\n'
            )
        if name == "absent":
            return 200, "python_gc_objects_collected_total 5\n"
        if name == "two-engines":
            both = [
                pages.engine(finished=finished / 2, running=3, kv_usage=use, engine=e)
                for e, use in (("0", 0.2), ("1", 0.6))
            ]
            lines = dict.fromkeys(line for page in both for line in page.splitlines() if not line.startswith("#"))
            return 200, "\n".join(lines) + "\n"
        if name == "restarting":
            if self.restarted_at is None and seconds > 5:
                self.restarted_at = seconds
            since = 0.0 if self.restarted_at is None else self.restarted_at
            return 200, pages.engine(finished=1000.0 * (since == 0.0) + RATE * (seconds - since))
        if name == "growing":
            return 200, pages.engine(finished=finished, running=10, waiting=2.0 * seconds)
        if name == "zero":
            return 200, pages.engine(finished=0.0)
        if name == "nan":
            return 200, pages.engine(finished=finished, kv_usage="NaN")
        if name == "prefixed":
            return 200, pages.engine(finished=finished, prefix="kserve_vllm:")
        if name == "proxy":  # one endpoint that names the pod itself: Prometheus makes it exported_pod
            return 200, pages.engine(finished=finished, extra_labels=',pod="named-by-proxy",namespace="other"')
        return 200, pages.engine(finished=finished, running=2, waiting=1, profile=name)

    def targets(self) -> list[dict[str, object]]:
        names = [
            "current",
            "legacy",
            "both",
            "sim",
            "absent",
            "two-engines",
            "restarting",
            "growing",
            "zero",
            "nan",
            "prefixed",
            "proxy",
        ]
        return [
            {
                "targets": [self.address],
                "labels": {"__metrics_path__": f"/{name}/metrics", "pod": name, "namespace": "team"},
            }
            for name in names
        ]

    address = ""


@pytest.fixture(scope="module")
def fleet():
    return Fleet()


@pytest.fixture(scope="module")
def server(fleet):
    with Server(fleet.page) as server:
        fleet.address = server.address
        yield server


@pytest.fixture(scope="module")
def running(fleet, server):
    exporter = {"pod": "exporter-x", "namespace": "monitoring"}
    configs = [
        real.http_targets("engines", f"{server.url}/sd"),
        real.static_targets("dcgm", server.address, labels=exporter, metrics_path="/dcgm/metrics"),
        real.static_targets("kepler", server.address, labels=exporter, metrics_path="/kepler/metrics"),
        # The same pod through a second job, as an annotation-based job beside a PodMonitor does.
        real.static_targets(
            "twice", server.address, labels={"pod": "current", "namespace": "team"}, metrics_path="/current/metrics"
        ),
    ]
    with real.Prometheus(configs, scrape_interval="1s") as running:
        time.sleep(2 * WINDOW_SECONDS)
        yield running


@pytest.fixture(scope="module")
def source(running):
    queries = QuerySettings(
        rate_window_seconds=WINDOW_SECONDS, length_window_seconds=WINDOW_SECONDS, prefixes=("vllm:", "kserve_vllm:")
    )
    source = PrometheusSource(PrometheusSettings(url=running.url, queries=queries))
    yield source
    source.close()


@pytest.fixture(scope="module")
def snapshot(source):
    return source.collect(time.time())


def near(value: float, relative: float = 0.05):
    return pytest.approx(value, rel=relative)


def the(histogram: Histogram | None) -> Histogram:
    assert histogram is not None
    return histogram


def test_every_query_is_answered(snapshot):
    assert snapshot.errors == ()


@pytest.mark.parametrize("name", ["current", "legacy", "both", "sim", "nan", "prefixed"])
def test_a_busy_pod_under_any_names(snapshot, name):
    reading: PodReading = snapshot.pods["team", name]
    assert 0.0 <= reading.age_seconds < 3.0
    assert reading.running is not None
    assert reading.finished_per_second == near(RATE)
    assert reading.prompt_tokens_per_second == near(RATE * 150)
    assert reading.generation_tokens_per_second == near(RATE * 30)
    assert reading.prefix_queries_per_second == near(RATE * 150)
    assert reading.prefix_hits_per_second == near(RATE * 60)
    assert the(reading.ttft_seconds).mean == near(0.2, 0.001)
    assert the(reading.ttft_seconds).count == near(RATE)
    assert the(reading.tpot_seconds).mean == near(0.03, 0.001)
    assert the(reading.prompt_tokens).mean == near(150, 0.001)
    assert the(reading.output_tokens).mean == near(30, 0.001)
    assert math.isinf(the(reading.ttft_seconds).upper_bounds[-1])
    assert reading.kv_cache.num_gpu_blocks == 1000
    assert reading.kv_usage == (None if name == "nan" else 0.25)
    assert reading.preemptions_per_second == (None if name == "sim" else near(RATE * 0.1))


def test_counts_of_tpot_show_which_name_was_taken(snapshot):
    per_request = {"current", "sim"}
    for name in ("current", "sim", "both", "legacy"):
        count = the(snapshot.pods["team", name].tpot_seconds).count
        assert count == near(RATE if name in per_request else RATE * 30), name


def test_a_pod_scraped_by_two_jobs_counts_once(snapshot):
    assert snapshot.pods["team", "current"].running == 2
    assert snapshot.pods["team", "current"].finished_requests < RATE * 200


def test_engines_of_one_pod_add_up_but_kv_usage_is_the_fullest(snapshot):
    reading = snapshot.pods["team", "two-engines"]
    assert reading.running == 6
    assert reading.finished_per_second == near(RATE)
    assert reading.kv_usage == 0.6
    assert reading.kv_cache.size_tokens == 32_000


@pytest.mark.parametrize("name", ["current", "legacy", "both", "prefixed"])
def test_counters_of_one_scrape_come_in_one_answer(snapshot, name):
    reading = snapshot.pods["team", name]
    engine, count = reading.engine, reading.engine.finished_requests
    assert count > 0.0
    assert engine.prompt_tokens == near(count * 150, 1e-6)
    assert engine.cached_prompt_tokens == near(count * 60, 1e-6)
    assert engine.generation_tokens == near(count * 30, 1e-6)
    assert engine.inter_token_count == near(count * 30, 1e-6)
    assert engine.iteration_count is None
    assert abs(snapshot.time_seconds - engine.time_seconds) < 5.0


def test_counters_of_two_engines_add_up(snapshot):
    engine = snapshot.pods["team", "two-engines"].engine
    assert engine.running == 6
    assert engine.kv_usage == near(0.4)


def test_flat_counters_are_zero_and_not_missing(snapshot):
    reading = snapshot.pods["team", "zero"]
    assert reading.finished_per_second == 0.0
    assert the(reading.ttft_seconds).count == 0.0
    assert the(reading.ttft_seconds).quantile(0.95) is None


def test_a_pod_without_engine_series_is_absent(snapshot):
    assert ("team", "absent") not in snapshot.pods


def test_a_restart_does_not_spoil_the_rate(snapshot):
    assert snapshot.pods["team", "restarting"].finished_per_second == near(RATE, 0.3)


def test_growth_of_the_queue_is_seen(snapshot):
    assert snapshot.pods["team", "growing"].in_system_growth_per_second == near(2.0)


def test_the_pod_named_by_the_exporter_wins_over_the_one_that_was_scraped(snapshot):
    assert ("other", "named-by-proxy") in snapshot.pods
    assert ("team", "proxy") not in snapshot.pods


def test_power_goes_to_the_pod_that_holds_the_gpu(snapshot):
    (gpu,) = snapshot.pods["team", "current"].gpus
    assert (gpu.uuid, gpu.power_watts, gpu.sm_clock_mhz, gpu.power_limit_watts) == ("GPU-1", 300, 1755, 500)
    assert gpu.node == "node-1"
    (gpu,) = snapshot.pods["team", "two-engines"].gpus
    assert (gpu.power_watts, gpu.node) == (310, "node-1")
    assert snapshot.gpus["GPU-3"].power_watts == 70
    (gpu,) = snapshot.pods["team", "legacy"].gpus
    assert gpu.power_watts is None, "the watts of a MIG slice are those of the whole card"


def test_kepler_stands_in_where_dcgm_is_silent(snapshot):
    (gpu,) = snapshot.pods["team", "both"].gpus
    assert gpu.power_watts == 250
    (gpu,) = snapshot.pods["team", "sim"].gpus
    assert gpu.power_watts == near(100)
    assert snapshot.gpus["GPU-9"].power_watts == 66


def test_namespaces_and_matchers_restrict(running):
    queries = QuerySettings(rate_window_seconds=WINDOW_SECONDS, namespaces=("team", "a.b"), matchers=('pod!="sim"',))
    source = PrometheusSource(PrometheusSettings(url=running.url, queries=queries))
    snapshot = source.collect(time.time())
    source.close()
    assert snapshot.errors == ()
    assert ("team", "legacy") in snapshot.pods
    assert ("team", "sim") not in snapshot.pods


def test_a_pod_that_is_not_scraped_any_more_ages_and_a_new_source_does_not_know_it(fleet, source, snapshot):
    fleet.down.add("legacy")
    time.sleep(3)
    after = source.collect(time.time())
    before = snapshot.pods["team", "legacy"]
    aged = after.pods["team", "legacy"]
    assert aged.finished_requests == before.finished_requests
    assert aged.age_seconds >= 2.0, "what it last said stands, and its age tells"
    assert after.pods["team", "both"].age_seconds < 2.0
    fresh = PrometheusSource(source._settings)
    assert ("team", "legacy") not in fresh.collect(time.time()).pods, "its series ended with the failed scrape"
    fresh.close()
