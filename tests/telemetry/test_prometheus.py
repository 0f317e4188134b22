"""A Prometheus that is down, slow, wrong, partial or odd."""

import json
import subprocess
import time

import pytest

from tests.telemetry.servers import Server, query_of, vector
from wattkeeper.domain.errors import TelemetryError
from wattkeeper.telemetry.prometheus import PrometheusSettings, PrometheusSource
from wattkeeper.telemetry.promql import QuerySettings, engine_queries, gpu_queries

POD = {"namespace": "team", "pod": "chat-0"}
QUERIES = {**engine_queries(QuerySettings()), **gpu_queries(QuerySettings())}
NAMES = {text: name for name, text in QUERIES.items()}
EMPTY = vector()


def healthy(name: str) -> tuple[int, str]:
    now = 1_000_000.0
    scalars = {"running": 2, "waiting": 1, "kv_usage": 0.5, "finished": 3.0, "growth": -0.5}
    if name == "age":
        return vector((POD, now - 7), at=now)
    if name in scalars:
        return vector((POD, scalars[name]), at=now)
    if name == "ttft":
        return vector(({**POD, "le": "0.1"}, 1.0), ({**POD, "le": "+Inf"}, 3.0), ({**POD, "le": "sum"}, 0.6), at=now)
    return EMPTY


@pytest.fixture
def ask():
    """Collect once from a Prometheus whose answers are `special` by query name, healthy ones else."""
    closing = []

    def run(special=None, *, every=None, **settings):
        special = special or {}

        def answer(path, headers):
            name = NAMES[query_of(path)]
            found = every or special.get(name) or healthy(name)
            return found(path, headers) if callable(found) else found

        server = Server(answer)
        server.__enter__()
        source = PrometheusSource(PrometheusSettings(url=server.url, **settings))
        closing.append((server, source))
        run.server = server
        return source.collect(time.time())

    yield run
    for server, source in closing:
        source.close()
        server.__exit__()


def test_a_healthy_answer(ask):
    snapshot = ask()
    reading = snapshot.pods["team", "chat-0"]
    assert (reading.running, reading.waiting, reading.kv_usage) == (2, 1, 0.5)
    assert reading.age_seconds == 7, "by the clock of Prometheus, not by ours"
    assert reading.in_system_growth_per_second == -0.5
    assert reading.ttft_seconds.cumulative == (1.0, 3.0)
    assert reading.ttft_seconds.mean == pytest.approx(0.2)
    assert reading.preemptions_per_second is None, "an empty answer is missing, not zero"
    assert snapshot.errors == ()
    assert len(ask.server.requests) == len(QUERIES) < 30


@pytest.mark.parametrize("name", ["age", "running", "waiting", "finished"])
def test_without_a_needed_query_there_is_no_snapshot(ask, name):
    body = json.dumps({"status": "error", "errorType": "execution", "error": 'too "many" samples'})
    with pytest.raises(TelemetryError, match=f"'{name}'.*HTTP 422.*too \"many\" samples"):
        ask({name: (422, body)})


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_one_failed_query_costs_its_own_quantity(ask, status):
    snapshot = ask({"kv_usage": (status, "out of order")})
    reading = snapshot.pods["team", "chat-0"]
    assert reading.kv_usage is None
    assert reading.running == 2
    assert snapshot.errors == (f"query kv_usage: HTTP {status} (b'out of order')",)


def test_a_refused_token_is_named(ask):
    with pytest.raises(TelemetryError, match=r"HTTP 403.*check the token"):
        ask(every=(403, "forbidden"))


def test_a_slow_query_times_out_alone(ask):
    def slow(path, headers):
        time.sleep(4.0)
        return EMPTY

    began = time.monotonic()
    snapshot = ask({"prefix_hits": slow}, timeout_seconds=0.3)
    assert time.monotonic() - began < 3.5
    assert snapshot.pods["team", "chat-0"].running == 2
    assert "query prefix_hits: no answer within 0.3 s" in snapshot.errors


def test_a_hanging_prometheus_ends_within_twice_the_timeout(ask):
    def slow(path, headers):
        time.sleep(4.0)
        return EMPTY

    began = time.monotonic()
    with pytest.raises(TelemetryError, match="no answer within"):
        ask(every=slow, timeout_seconds=0.3)
    assert time.monotonic() - began < 3.5


def test_a_prometheus_that_is_down_is_not_asked_on():
    source = PrometheusSource(PrometheusSettings(url="http://127.0.0.1:9"))
    began = time.monotonic()
    with pytest.raises(TelemetryError, match=r"127\.0\.0\.1.*no connection.*check the URL"):
        source.collect(0.0)
    assert time.monotonic() - began < 10
    source.close()


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("<html>log in</html>", "not JSON"),
        ("{}", "unusable answer"),
        ('{"data": {"result": [{"metric": {}}]}}', "unusable answer"),
        ('{"data": {"result": [{"metric": {}, "value": [1, "many"]}]}}', "unusable answer"),
        ('{"data": null}', "unusable answer"),
    ],
)
def test_answers_that_are_no_vectors(ask, body, what):
    with pytest.raises(TelemetryError, match=what):
        ask({"running": (200, body)})
    snapshot = ask({"kv_usage": (200, body)})
    assert what in snapshot.errors[0]


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_what_is_no_number_is_missing(ask, value):
    snapshot = ask({"kv_usage": vector((POD, value)), "running": vector((POD, value))})
    reading = snapshot.pods["team", "chat-0"]
    assert reading.kv_usage is None
    assert reading.running is None


def test_an_empty_prometheus_says_what_it_lacks(ask):
    snapshot = ask(every=EMPTY)
    assert snapshot.pods == {}
    assert "has no series vllm:num_requests_running" in snapshot.errors[0]


def test_the_same_pod_under_two_label_schemes_counts_once(ask):
    other = {"kubernetes_namespace": "team", "kubernetes_pod_name": "chat-0"}
    snapshot = ask({"running": vector((POD, 2), (other, 3))})
    assert list(snapshot.pods) == [("team", "chat-0")]
    assert snapshot.pods["team", "chat-0"].running == 3


def test_series_without_pod_labels_are_reported(ask):
    at = 1_000_000.0
    snapshot = ask({"age": vector((POD, at), ({"instance": "10.0.0.1:8000"}, at), at=at)})
    assert list(snapshot.pods) == [("team", "chat-0")]
    assert "1 engine series carry no pod and namespace label" in snapshot.errors[0]


def test_warnings_are_passed_on_once(ask):
    partial = vector((POD, 1.0), warnings=["partial response: store x is down"])
    snapshot = ask({"kv_usage": partial, "preemptions": partial})
    assert snapshot.errors == ("query kv_usage: Prometheus warns: partial response: store x is down",)


def test_buckets_that_step_down_by_rounding_are_made_to_ascend(ask):
    rows = {"0.1": 1.0000001, "0.2": 1.0, "+Inf": 1.0, "sum": 0.1}
    snapshot = ask({"ttft": vector(*(({**POD, "le": le}, value) for le, value in rows.items()))})
    assert snapshot.pods["team", "chat-0"].ttft_seconds.cumulative == (1.0000001, 1.0000001, 1.0000001)


@pytest.mark.parametrize("lacking", ["+Inf", "sum"])
def test_half_a_histogram_is_none(ask, lacking):
    rows = {"0.1": 1.0, "+Inf": 2.0, "sum": 0.1}
    del rows[lacking]
    snapshot = ask({"ttft": vector(*(({**POD, "le": le}, value) for le, value in rows.items()))})
    assert snapshot.pods["team", "chat-0"].ttft_seconds is None


def test_lengths_are_asked_less_often():
    asked = []

    def answer(path, headers):
        name = NAMES[query_of(path)]
        asked.append(name)
        if name == "prompt_length":
            return vector(({**POD, "le": "100"}, 1.0), ({**POD, "le": "+Inf"}, 1.0), ({**POD, "le": "sum"}, 50.0))
        return healthy(name)

    with Server(answer) as server:
        source = PrometheusSource(PrometheusSettings(url=server.url))
        for now in (1000.0, 1005.0, 1029.0, 1031.0, 900.0):
            assert source.collect(now).pods["team", "chat-0"].prompt_tokens.mean == 50.0
        source.close()
    assert asked.count("prompt_length") == 3
    assert asked.count("output_length") == 5, "an empty answer is not kept"
    assert asked.count("running") == 5


def test_one_failed_scrape_leaves_what_the_pod_last_said_and_its_age_grows():
    scraped = True

    def answer(path, headers):
        return healthy(NAMES[query_of(path)]) if scraped else EMPTY

    with Server(answer) as server:
        source = PrometheusSource(PrometheusSettings(url=server.url))
        source.collect(1000.0)
        scraped = False
        for now, age in ((1015.0, 22.0), (1030.0, 37.0), (1300.0, 307.0)):
            reading = source.collect(now).pods["team", "chat-0"]
            assert (reading.running, reading.age_seconds) == (2, age)
        assert source.collect(1301.0).pods == {}
        scraped = True
        assert source.collect(1315.0).pods["team", "chat-0"].age_seconds == 7
        source.close()


def gpu(pod=None, **more):
    labels = {"UUID": "GPU-1", "Hostname": "node-1", "namespace": "monitoring", "pod": "dcgm-x", **more}
    return labels | ({"exported_pod": pod, "exported_namespace": "team"} if pod else {})


def test_stale_power_is_left_out_and_said_so(ask):
    at = 1_000_000.0
    snapshot = ask(
        {"gpu_power": vector((gpu("chat-0"), 300), at=at), "gpu_age": vector((gpu("chat-0"), at - 100), at=at)}
    )
    (found,) = snapshot.pods["team", "chat-0"].gpus
    assert found.power_watts is None
    assert snapshot.errors == ("power of 1 GPUs is older than 90 s and left out",)
    assert snapshot.pods["team", "chat-0"].age_seconds == 7, "old power does not make the engine's series old"


def test_a_gpu_that_lost_its_series_has_no_power_from_the_window(ask):
    snapshot = ask({"gpu_power": vector((gpu("chat-0"), 300))})
    assert snapshot.pods["team", "chat-0"].gpus == ()


def test_the_exporters_own_pod_never_gets_the_power(ask):
    at = 1_000_000.0
    for order in (1, -1):
        both = [gpu(), gpu("chat-0")][::order]
        snapshot = ask(
            {
                "gpu_power": vector(*((labels, 300) for labels in both), at=at),
                "gpu_age": vector(*((labels, at) for labels in both), at=at),
            }
        )
        assert snapshot.pods["team", "chat-0"].gpus[0].power_watts == 300


def test_tokens_are_read_at_every_request(ask, tmp_path):
    file = tmp_path / "token"
    file.write_text("first\n")
    ask(bearer_token_file=file, headers={"X-Scope-OrgID": "tenant"}, params={"partial_response": "true"})
    path, headers = ask.server.requests[0]
    assert headers["authorization"] == "Bearer first"
    assert headers["x-scope-orgid"] == "tenant"
    assert "partial_response=true" in path
    file.unlink()
    with pytest.raises(TelemetryError, match="bearer token file cannot be read"):
        ask(bearer_token_file=file)


def test_secrets_are_not_in_the_text_of_settings():
    settings = PrometheusSettings(url="http://p", bearer_token="hush", headers={"X": "hush"})
    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "prometheus:9090"},
        {"url": "http://p", "bearer_token": "a", "bearer_token_file": "b"},
        {"url": "http://p", "timeout_seconds": 0},
        {"url": "http://p", "concurrent_queries": 0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        PrometheusSettings(**wrong)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout {key} -out {cert}"
    )
    command += " -subj /CN=prometheus -addext subjectAltName=IP:127.0.0.1"
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return key, cert


def test_tls_needs_the_ca_or_an_explicit_waiver(certificate):
    key, cert = certificate
    with Server(lambda path, headers: healthy(NAMES[query_of(path)]), certificate=(cert, key)) as server:
        url = server.url.replace("http:", "https:")
        for more in ({"ca_file": cert}, {"insecure_skip_verify": True}):
            source = PrometheusSource(PrometheusSettings(url=url, **more))
            assert source.collect(0.0).pods
            source.close()
        source = PrometheusSource(PrometheusSettings(url=url))
        with pytest.raises(TelemetryError, match="TLS failed"):
            source.collect(0.0)
        source.close()
