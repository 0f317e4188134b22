"""What the queries contain; that they are right is shown by test_real_prometheus."""

import re

import pytest

from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.promql import QuerySettings, engine_queries, gpu_queries


def test_every_name_is_asked_newest_first():
    queries = engine_queries(QuerySettings(prefixes=("vllm:", "old:")))
    for name, metric in aliases.ENGINE_METRICS.items():
        names = aliases.full_names(metric, ("vllm:", "old:"))
        places = [re.search(rf"{full}(_bucket)?\b", queries[name]).start() for full in names]
        assert places == sorted(places), name


def test_the_number_of_queries_depends_on_nothing():
    many = QuerySettings(prefixes=("vllm:", "b:"), namespaces=tuple(f"n{index}" for index in range(50)))
    assert engine_queries(many).keys() == engine_queries(QuerySettings()).keys()
    assert len(engine_queries(many)) + len(gpu_queries(many)) < 30


def test_restrictions_go_into_every_selector():
    settings = QuerySettings(namespaces=("a", "b.c"), matchers=('cluster="east"',))
    for text in engine_queries(settings).values():
        assert text.count('cluster="east"') == text.count("vllm:")
        assert text.count(r'namespace=~"a|b\\.c"') == text.count("vllm:")
    for text in gpu_queries(settings).values():
        assert 'cluster="east"' in text
        assert "namespace=~" not in text, "the namespace of a GPU series may be that of the exporter"


def test_windows_are_whole_seconds():
    assert "[91s]" in engine_queries(QuerySettings(rate_window_seconds=90.2))["finished"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_window_seconds": 0},
        {"prefixes": ("9:",)},
        {"prefixes": ("vllm:{",)},
        {"matchers": ("cluster=east",)},
        {"matchers": ('a="b"} or vector(1) or x{c="d"',)},
    ],
)
def test_what_would_break_a_query_is_refused(wrong):
    with pytest.raises(ValueError):
        QuerySettings(**wrong)
