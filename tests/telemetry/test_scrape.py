"""Direct scrapes: pods and GPU exporters that answer, fail, hang, restart, vanish."""

import time

import pytest

from tests.telemetry import pages
from tests.telemetry.servers import Server
from wattkeeper.domain.errors import TelemetryError
from wattkeeper.telemetry.pages import ScrapeTarget
from wattkeeper.telemetry.scrape import ScrapeSettings, ScrapeSource


class Cluster:
    """Pages by path; a page is text, a status, or a function."""

    def __init__(self) -> None:
        self.pages = {}
        self.server = Server(self.answer)

    def answer(self, path, headers):
        page = self.pages.get(path, 404)
        page = page() if callable(page) else page
        return (page, "") if isinstance(page, int) else (200, page)

    def engine(self, pod: str) -> ScrapeTarget:
        return ScrapeTarget(url=f"{self.server.url}/{pod}", namespace="team", pod=pod)

    def exporter(self, node: str) -> ScrapeTarget:
        return ScrapeTarget(url=f"{self.server.url}/{node}", role="gpu")


@pytest.fixture
def cluster():
    cluster = Cluster()
    with cluster.server:
        yield cluster


@pytest.fixture
def source():
    source = ScrapeSource(ScrapeSettings(timeout_seconds=0.4, deadline_seconds=2.0))
    yield source
    source.close()


def test_two_scrapes_make_a_reading(cluster, source):
    source.set_targets([cluster.engine("a")])
    cluster.pages["/a"] = pages.engine(finished=100, running=2, waiting=1)
    first = source.collect(1000.0).pods["team", "a"]
    assert (first.running, first.waiting, first.kv_usage, first.age_seconds) == (2, 1, 0.25, 0.0)
    assert first.finished_per_second is None, "one scrape makes no rate, and none is not zero"
    assert first.ttft_seconds is None
    cluster.pages["/a"] = pages.engine(finished=140, running=5, waiting=3)
    snapshot = source.collect(1010.0)
    second = snapshot.pods["team", "a"]
    assert second.finished_per_second == pytest.approx(4.0, rel=0.02)
    assert second.in_system_growth_per_second == pytest.approx(0.5, rel=0.02)
    assert second.finished_requests == 140
    assert second.generation_tokens_per_second == pytest.approx(120, rel=0.02)
    assert second.ttft_seconds.mean == pytest.approx(0.2)
    assert second.output_tokens.mean == pytest.approx(30)
    assert second.kv_cache.size_tokens == 16_000
    assert snapshot.errors == ()


def test_an_idle_pod_is_a_real_zero(cluster, source):
    source.set_targets([cluster.engine("a")])
    cluster.pages["/a"] = pages.engine(finished=100)
    source.collect(1000.0)
    reading = source.collect(1010.0).pods["team", "a"]
    assert reading.finished_per_second == 0.0
    assert reading.prefix_queries_per_second == 0.0
    assert reading.ttft_seconds.count == 0.0


def test_one_that_fails_keeps_its_last_reading_with_its_age(cluster, source):
    source.set_targets([cluster.engine("a"), cluster.engine("b")])
    cluster.pages.update({"/a": pages.engine(finished=1), "/b": pages.engine(finished=1)})
    source.collect(1000.0)
    cluster.pages["/b"] = 503
    snapshot = source.collect(1020.0)
    assert snapshot.pods["team", "a"].age_seconds == 0.0
    assert snapshot.pods["team", "b"].age_seconds == pytest.approx(20.0, abs=1)
    assert snapshot.errors == (f"{cluster.server.url}/b: HTTP 503",)
    source.collect(1200.0)
    assert ("team", "b") not in source.collect(1500.0).pods


def test_all_failing_is_an_error(cluster, source):
    source.set_targets([cluster.engine("a"), cluster.engine("b")])
    with pytest.raises(TelemetryError, match=r"none of 2 engines answered.*HTTP 404"):
        source.collect(1000.0)


def test_many_failures_are_counted_not_listed(cluster, source):
    source.set_targets([cluster.engine(name) for name in "abcdefg"])
    cluster.pages["/a"] = pages.engine()
    assert len(source.collect(0.0).errors) == 4
    assert "3 more targets did not answer" in source.collect(5.0).errors


def test_no_targets_is_said_so(source):
    assert source.collect(0.0).errors == ("there is no engine to scrape",)


def test_a_page_without_engine_series_is_a_failure(cluster, source):
    source.set_targets([cluster.engine("a"), cluster.engine("b")])
    cluster.pages.update({"/a": pages.engine(), "/b": "python_info 1\n"})
    assert "no series vllm:num_requests_running: is this a vLLM engine?" in source.collect(0.0).errors[0]


@pytest.mark.parametrize("page", ["vllm:num_requests_running{ 1\n", "vllm:num_requests_running one\n"])
def test_a_broken_page_is_a_failure_of_its_own_target(cluster, source, page):
    source.set_targets([cluster.engine("a"), cluster.engine("b")])
    cluster.pages.update({"/a": pages.engine(), "/b": page})
    snapshot = source.collect(0.0)
    assert list(snapshot.pods) == [("team", "a")]
    assert len(snapshot.errors) == 1


def test_a_hanging_target_costs_only_its_timeout(cluster, source):
    def hang():
        time.sleep(4.0)
        return 500

    source.set_targets([cluster.engine("a"), cluster.engine("b")])
    cluster.pages.update({"/a": pages.engine(), "/b": hang})
    began = time.monotonic()
    snapshot = source.collect(0.0)
    assert time.monotonic() - began < 3.5
    assert list(snapshot.pods) == [("team", "a")]
    assert "no answer within 0.4 s" in snapshot.errors[0]


def test_a_collection_ends_at_its_deadline(cluster):
    def hang():
        time.sleep(4.0)
        return 500

    source = ScrapeSource(ScrapeSettings(timeout_seconds=0.4, deadline_seconds=0.3, concurrent_scrapes=1))
    source.set_targets([cluster.engine("a"), cluster.engine("b"), cluster.engine("c")])
    cluster.pages.update({"/a": pages.engine(), "/b": hang, "/c": hang})
    began = time.monotonic()
    snapshot = source.collect(0.0)
    assert time.monotonic() - began < 3.5
    assert list(snapshot.pods) == [("team", "a")]
    assert any("not reached within the 0.3 s" in error for error in snapshot.errors)
    source.close()


def test_a_page_without_end_is_cut(cluster):
    source = ScrapeSource(ScrapeSettings(max_page_bytes=2000))
    source.set_targets([cluster.engine("a")])
    cluster.pages["/a"] = pages.engine()
    with pytest.raises(TelemetryError, match="longer than 2000 bytes"):
        source.collect(0.0)
    source.close()


def test_targets_that_go_are_forgotten(cluster, source):
    source.set_targets([cluster.engine("a"), cluster.engine("b")])
    cluster.pages.update({"/a": pages.engine(), "/b": pages.engine()})
    source.collect(0.0)
    source.set_targets([cluster.engine("b")])
    assert list(source.collect(5.0).pods) == [("team", "b")]


def test_power_is_averaged_and_follows_the_pod(cluster, source):
    source.set_targets([cluster.engine("a"), cluster.exporter("node")])
    cluster.pages["/a"] = pages.engine()
    gpu = {"uuid": "GPU-1", "watts": 300, "pod": "a", "namespace": "team", "limit": 450}
    cluster.pages["/node"] = pages.dcgm([gpu, {"uuid": "GPU-2", "watts": 60}])
    source.collect(1000.0)
    cluster.pages["/node"] = pages.dcgm([{**gpu, "watts": 400}, {"uuid": "GPU-2", "watts": 60}])
    snapshot = source.collect(1005.0)
    (reading,) = snapshot.pods["team", "a"].gpus
    assert (reading.power_watts, reading.sm_clock_mhz, reading.power_limit_watts) == (350, 1755, 450)
    assert reading.model == "NVIDIA H100 80GB HBM3"
    assert snapshot.gpus["GPU-2"].power_watts == 60
    cluster.pages["/node"] = 500
    snapshot = source.collect(1100.0)
    assert snapshot.pods["team", "a"].gpus[0].power_watts is None, "old watts are no watts"
    assert len(snapshot.errors) == 2


def test_kepler_pages_count_too(cluster, source):
    source.set_targets([cluster.engine("a"), cluster.exporter("kepler")])
    cluster.pages["/a"] = pages.engine()
    labels = 'pod_name="a",pod_namespace="team"'
    cluster.pages["/kepler"] = (
        f'kepler_pod_gpu_watts{{{labels},gpu="0",state="running"}} 100\n'
        f'kepler_pod_gpu_watts{{{labels},gpu="1",state="running"}} 110\n'
        f'kepler_pod_gpu_watts{{{labels},gpu="1",state="terminated"}} 5\n'
    )
    (gpu,) = source.collect(0.0).pods["team", "a"].gpus
    assert gpu.power_watts == 210


def test_headers_and_tokens_are_sent(cluster, tmp_path):
    file = tmp_path / "token"
    file.write_text("first")
    source = ScrapeSource(ScrapeSettings(bearer_token_file=file, headers={"X-Cluster": "east"}))
    source.set_targets([cluster.engine("a")])
    cluster.pages["/a"] = pages.engine()
    source.collect(0.0)
    file.write_text("second")
    source.collect(5.0)
    sent = [headers for _, headers in cluster.server.requests]
    assert [headers["authorization"] for headers in sent] == ["Bearer first", "Bearer second"]
    assert sent[0]["x-cluster"] == "east"
    file.unlink()
    with pytest.raises(TelemetryError, match="bearer token file"):
        source.collect(10.0)
    source.close()


def test_a_clock_of_its_own_stamps_pages(cluster):
    now = [5000.0]
    source = ScrapeSource(clock=lambda: now[0])
    source.set_targets([cluster.engine("a")])
    cluster.pages["/a"] = pages.engine(finished=0)
    source.collect(5000.0)
    cluster.pages["/a"] = pages.engine(finished=36_000)
    now[0] = 8600.0
    assert source.collect(8600.0).pods["team", "a"].finished_per_second == pytest.approx(10.0)
    source.close()


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="namespace and a pod"):
        ScrapeTarget(url="http://x/metrics")
    with pytest.raises(ValueError, match="not both"):
        ScrapeSettings(bearer_token="a", bearer_token_file="b")
    with pytest.raises(ValueError, match="positive"):
        ScrapeSettings(timeout_seconds=0)


def test_utilisation_and_temperature_are_read_where_the_exporter_has_them(cluster, source):
    source.set_targets([cluster.engine("a"), cluster.exporter("node")])
    cluster.pages["/a"] = pages.engine()
    gpu = {"uuid": "GPU-1", "watts": 300, "pod": "a", "namespace": "team", "use": 80, "celsius": 61}
    cluster.pages["/node"] = pages.dcgm([gpu, {"uuid": "GPU-2", "watts": 60}])
    source.collect(1000.0)
    cluster.pages["/node"] = pages.dcgm([{**gpu, "use": 90, "celsius": 63}, {"uuid": "GPU-2", "watts": 60}])
    snapshot = source.collect(1005.0)
    (reading,) = snapshot.pods["team", "a"].gpus
    assert (reading.utilisation, reading.temperature_celsius) == (pytest.approx(0.85), pytest.approx(62.0))
    assert snapshot.gpus["GPU-2"].utilisation is None
    assert snapshot.gpus["GPU-2"].temperature_celsius is None
