"""Counters of one scrape, under the names of all versions, from pages and from Prometheus' answers."""

import json

import pytest

from tests.telemetry import pages
from tests.telemetry.servers import Server, query_of, vector
from wattkeeper.domain.observation import EngineCounters
from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.engine import engine_counters
from wattkeeper.telemetry.exposition import ExpositionReader, wanted_names
from wattkeeper.telemetry.pages import ScrapeTarget
from wattkeeper.telemetry.prometheus import PrometheusSettings, PrometheusSource
from wattkeeper.telemetry.promql import QuerySettings, engine_queries
from wattkeeper.telemetry.scrape import ScrapeSource

ITERATION = pages.histogram("vllm:iteration_tokens_total", 'engine="0"', [(80.0, 50), (600.0, 10)], (100.0, 1000.0))


def read(text, prefixes=("vllm:",), at=5.0):
    return engine_counters(ExpositionReader(wanted_names(prefixes)).read(text), prefixes, time_seconds=at)


@pytest.mark.parametrize("profile", ["current", "both", "legacy"])
def test_every_version_is_read(profile):
    found = read(pages.engine(finished=100.0, running=3.0, waiting=1.0, profile=profile) + "\n".join(ITERATION) + "\n")
    assert found == EngineCounters(
        time_seconds=5.0,
        running=3.0,
        waiting=1.0,
        kv_usage=0.25,
        finished_requests=100.0,
        prompt_tokens=15_000.0,
        cached_prompt_tokens=6_000.0,
        generation_tokens=3_000.0,
        preemptions=10.0,
        inter_token_seconds_sum=pytest.approx(90.0),
        inter_token_count=3_000.0,
        iteration_tokens_sum=10_000.0,
        iteration_count=60.0,
    )


def test_what_is_not_served_is_none():
    found = read(pages.engine(finished=100.0, profile="sim"))
    assert (found.iteration_count, found.iteration_tokens_sum, found.preemptions) == (None, None, None)
    assert found.finished_requests == 100.0
    assert read("python_info 1\n") is None


def test_engines_of_one_pod_add_up_and_their_steps_do_not():
    second = [line.replace('engine="0"', 'engine="1"') for line in ITERATION if not line.startswith("#")]
    text = pages.engine(finished=100.0, running=4.0, engine="0", kv_usage=0.2)
    text += "\n".join(
        line
        for line in pages.engine(finished=50.0, running=1.0, engine="1", kv_usage=0.6).split("\n")
        if "#" not in line
    )
    found = read(text + "\n".join([*ITERATION, *second]) + "\n")
    assert (found.running, found.finished_requests, found.kv_usage) == (5.0, 150.0, pytest.approx(0.4))
    assert (found.iteration_tokens_sum, found.iteration_count) == (20_000.0, 60.0)


def test_tokens_from_other_caches_count_where_they_are_served():
    text = pages.engine(finished=100.0) + 'vllm:prompt_tokens_cached_total{engine="0"} 7000\n'
    assert read(text).cached_prompt_tokens == 7000.0


def test_a_scrape_carries_the_counters_and_their_time():
    page = pages.engine(finished=10.0) + "\n".join(ITERATION) + "\n"
    source = ScrapeSource(clock=lambda: 77.0)
    with Server(lambda path, headers: (200, page)) as server:
        source.set_targets([ScrapeTarget(url=server.url, namespace="team", pod="a")])
        snapshot = source.collect(80.0)
    source.close()
    engine = snapshot.pods["team", "a"].engine
    assert (engine.time_seconds, engine.iteration_count, engine.finished_requests) == (77.0, 60.0, 10.0)


def prometheus(body):
    queries = engine_queries(QuerySettings())

    def answer(path, headers):
        query = query_of(path)
        if query == queries["counters"]:
            return body
        scalar = {queries["age"]: 995.0, **{queries[name]: 1.0 for name in ("running", "waiting", "finished")}}
        return vector(({"namespace": "team", "pod": "a"}, scalar[query]), at=1000.0) if query in scalar else vector()

    with Server(answer) as server:
        source = PrometheusSource(PrometheusSettings(url=server.url))
        snapshot = source.collect(1000.0)
        source.close()
    return snapshot


def test_one_query_of_prometheus_carries_the_same():
    pod = {"namespace": "team", "pod": "a"}
    named = {
        "vllm:num_requests_running": 3.0,
        "vllm:gpu_cache_usage_perc": 0.9,
        "vllm:kv_cache_usage_perc": 0.5,
        "vllm:generation_tokens_total": 40.0,
        "vllm:iteration_tokens_total_sum": 900.0,
        "vllm:iteration_tokens_total_count": 30.0,
        "vllm:time_per_output_token_seconds_count": 1.0,
        "vllm:inter_token_latency_seconds_count": 39.0,
    }
    elements = [({**pod, "__name__": name, "engine": "0", "model_name": "m"}, value) for name, value in named.items()]
    elements += [
        ({**pod, "__name__": "vllm:request_success_total", "engine": "0", "finished_reason": reason}, 5.0)
        for reason in ("stop", "length")
    ]
    engine = prometheus(vector(*elements, ({**pod, "part": "time"}, 993.5), at=1000.0)).pods["team", "a"].engine
    assert engine == EngineCounters(
        time_seconds=993.5,
        running=3.0,
        kv_usage=0.5,
        finished_requests=10.0,
        generation_tokens=40.0,
        inter_token_count=39.0,
        iteration_tokens_sum=900.0,
        iteration_count=30.0,
    )


@pytest.mark.parametrize(
    "body", [(422, json.dumps({"status": "error", "error": "no"})), vector(), vector(({"pod": "a"}, 1.0))]
)
def test_without_an_answer_there_are_no_counters_and_the_rest_stands(body):
    reading = prometheus(body).pods["team", "a"]
    assert reading.engine is None
    assert reading.running == 1.0


def test_the_query_of_counters_asks_for_all_names_once():
    query = engine_queries(QuerySettings(prefixes=("vllm:", "b:")))["counters"]
    assert query.count("__name__=~") == 1
    assert "(vllm:|b:)" in query
    for name in aliases.COUNTED:
        for full in aliases.ENGINE_METRICS[name].names:
            assert full in query
    assert len(query) < 3000, "it must pass as a URL"
