"""The text reader against prometheus_client's parser, and the alias matrix of direct scrapes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tests.telemetry import pages
from wattkeeper.telemetry import aliases
from wattkeeper.telemetry.exposition import ExpositionReader, engine_sample, histogram_of, wanted_names

PREFIXES = ("vllm:", "kserve_vllm:")
NAMES = wanted_names(PREFIXES)


def sample_of(page: str):
    return engine_sample(ExpositionReader(NAMES).read(page), PREFIXES)


def by_parser(text: str):
    return sorted(
        (sample.name, sorted(sample.labels.items()), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in NAMES and math.isfinite(sample.value)
    )


def by_reader(reader: ExpositionReader, text: str):
    return sorted(
        (name, sorted(labels.items()), value) for name, found in reader.read(text).items() for labels, value in found
    )


@pytest.mark.parametrize("profile", ["current", "both", "legacy", "sim"])
def test_it_reads_what_the_library_reads_the_second_time_too(profile):
    reader = ExpositionReader(NAMES)
    for finished in (0, 7, 8):
        page = pages.engine(finished=finished, profile=profile, running=finished)
        assert by_reader(reader, page) == by_parser(page)


@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12),
    value=st.floats(allow_nan=True, allow_infinity=True),
    stamp=st.one_of(st.none(), st.integers(0, 2**40)),
)
def test_any_label_value_and_number(name, value, stamp):
    escaped = name.replace("\\", r"\\").replace('"', r"\"")
    number = {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, repr(value))
    text = f'vllm:num_requests_running{{model_name="{escaped}"}} {number}{"" if stamp is None else f" {stamp}"}\n'
    found = by_reader(ExpositionReader(NAMES), text)
    expected = [("vllm:num_requests_running", [("model_name", name)], value)] if math.isfinite(value) else []
    assert found == expected


def test_series_without_labels_comments_and_blank_lines():
    text = '# HELP vllm:num_requests_running {of} all\n\nvllm:num_requests_running 3\nother{a="}"} 1\n'
    assert by_reader(ExpositionReader(NAMES), text) == [("vllm:num_requests_running", [], 3.0)]


@pytest.mark.parametrize("text", ["vllm:num_requests_running{ 3\n", 'vllm:num_requests_running{a="b"} many\n'])
def test_what_is_not_of_the_format_is_refused(text):
    with pytest.raises(ValueError):
        ExpositionReader(NAMES).read(text)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("profile", ["current", "both", "legacy", "sim"])
def test_the_same_quantities_under_all_names(profile, prefix):
    found = sample_of(pages.engine(finished=8, running=2, waiting=1, profile=profile, prefix=prefix))
    assert found.gauges == {aliases.RUNNING: 2, aliases.WAITING: 1, aliases.KV_USAGE: 0.25}
    values = dict(zip(found.keys, found.counters, strict=True))
    assert values[aliases.FINISHED, ""] == 8
    assert values[aliases.PREFIX_HITS, ""] == 8 * 60
    assert ((aliases.PREEMPTIONS, "") in values) == (profile != "sim")
    assert histogram_of(aliases.TPOT, values).mean == pytest.approx(0.03)
    assert histogram_of(aliases.TPOT, values).count == (8 if profile in ("current", "sim") else 240)
    assert histogram_of(aliases.PROMPT_LENGTH, values).mean == 150
    assert found.kv_cache.num_gpu_blocks == 1000
    assert found.kv_cache.size_tokens == (None if profile == "sim" else 16_000)


def test_two_engines_add_up():
    parts = [
        pages.engine(finished=4, running=2, kv_usage=use, engine=engine) for engine, use in (("0", 0.1), ("1", 0.7))
    ]
    found = sample_of("".join(parts))
    values = dict(zip(found.keys, found.counters, strict=True))
    assert found.gauges == {aliases.RUNNING: 4, aliases.WAITING: 0, aliases.KV_USAGE: 0.7}
    assert values[aliases.FINISHED, ""] == 8
    assert histogram_of(aliases.TTFT, values).count == 8
    assert found.kv_cache.size_tokens == 32_000


def test_a_page_of_something_else_has_nothing():
    found = sample_of("python_info 1\n")
    assert found.gauges == {}
    assert found.keys == ()
    assert found.kv_cache is None
    assert histogram_of(aliases.TTFT, {}) is None


def test_labels_say_the_pod_most_explicit_first():
    exporter = {"namespace": "monitoring", "pod": "dcgm-x"}
    assert aliases.pod_key(exporter) == ("monitoring", "dcgm-x")
    assert aliases.pod_key({**exporter, "exported_pod": "a", "exported_namespace": "team"}) == ("team", "a")
    assert aliases.pod_key({**exporter, "pod_name": "a", "pod_namespace": "team"}) == ("team", "a")
    assert aliases.pod_key({**exporter, "pod_name": "a", "container_namespace": "team"}) == ("team", "a")
    assert aliases.pod_key({**exporter, "exported_pod": "", "exported_namespace": ""}) == ("monitoring", "dcgm-x")
    assert aliases.pod_key({"pod": "a"}) is None
    assert aliases.pod_key({"instance": "x"}) is None
