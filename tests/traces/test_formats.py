"""Loaders of traces, their errors, and generated traffic."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces import formats, generate
from wattkeeper.traces.trace import RateSeries, TraceError

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)


def write(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_azure_times_count_from_the_first_request(tmp_path):
    trace = formats.load(write(tmp_path, AZURE))
    assert [a[1:] for a in trace.arrivals()] == [(374, 44, 0, ()), (396, 109, 0, ())]
    assert trace.times_seconds == pytest.approx([0.0, 4.314579])


def test_mooncake_prefixes_seen_before_count_as_cached(tmp_path):
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 500, "input_length": 1500, "output_length": 7, "hash_ids": [1, 2, 9]},
        {"timestamp": 900, "input_length": 300, "output_length": 7, "hash_ids": [1]},
    ]
    trace = formats.load(write(tmp_path, "\n".join(map(json.dumps, rows)), "trace.jsonl"))
    assert trace.cached_tokens.tolist() == [0, 1024, 300]
    assert trace.times_seconds.tolist() == [0.0, 0.5, 0.9]


@pytest.mark.parametrize(
    ("header", "rows", "rates"),
    [
        ("minute_since_start,req_per_min,other", "0,60,x\n10,120,\n", (1.0, 2.0)),
        ("t_s,rate_rps", "0,1.5\n600,2\n", (1.5, 2.0)),
    ],
)
def test_rate_series(tmp_path, header, rows, rates):
    series = formats.load(write(tmp_path, f"{header}\n{rows}"))
    assert series.times_seconds == (0.0, 600.0)
    assert series.requests_per_second == rates


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"trace.csv:1: unknown format"),
        (AZURE + "yesterday,1,2\n", r"trace.csv:4: TIMESTAMP is 'yesterday'"),
        (AZURE + "2023-11-16 18:15:59,many,2\n", r"trace.csv:4: ContextTokens is 'many'"),
        (AZURE + "2023-11-16 18:15:59,3,-2\n", r"trace.csv:4: GeneratedTokens is -2"),
        (
            AZURE + "2023-11-16 18:15:59\n",
            r"trace.csv:4: ContextTokens is None, expected a whole number",
        ),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", r"holds 0 requests"),
        ('{"timestamp": 0}\n', r"trace.csv:1: expected an object with"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5}\n{broken\n', r"trace.csv:2: no JSON"),
        ("t_s,rate_rps\n0,1\n0,2\n", r"trace.csv:3: t_s is .0., expected more than in the line before"),
        ("t_s,rate_rps\n0,1\n600,nan\n", r"trace.csv:3: rate_rps is nan"),
        ("t_s,rate_rps\n0,1\n", r"holds 1 rates"),
    ],
)
def test_errors_name_the_line(tmp_path, text, message):
    with pytest.raises(TraceError, match=message):
        formats.load(write(tmp_path, text))


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(TraceError, match="No such file"):
        formats.load(tmp_path / "none.csv")
    (tmp_path / "x.gz").write_bytes(b"\x1f\x8b\x00\xff\xfe")
    with pytest.raises(TraceError, match=r"after line 0 .*it is cut off or broken"):
        formats.load(tmp_path / "x.gz")


LENGTHS = LengthDistribution.lognormal(mean=500, coefficient_of_variation=0.8)


@settings(deadline=None, max_examples=30)
@given(rate=st.floats(1, 30), cv=st.sampled_from([0.5, 1.0, 2.0]), seed=st.integers(0, 9))
def test_generated_arrivals_keep_rate_and_burstiness(rate, cv, seed):
    series = RateSeries(times_seconds=(0.0, 5000.0), requests_per_second=(rate, rate))
    trace = generate.generate(series, prompt=LENGTHS, output=LENGTHS, seed=seed, gap_cv=cv)
    expected = rate * 5000
    assert abs(len(trace) - expected) < 5 * cv * np.sqrt(expected) + 5
    gaps = np.diff(trace.times_seconds)
    assert (gaps >= 0).all()
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.15)
    assert trace.times_seconds[-1] < trace.span_seconds


def test_rate_follows_the_series_and_zero_means_none():
    series = RateSeries(times_seconds=(0, 1000, 1001, 2000), requests_per_second=(4, 4, 0, 0))
    trace = generate.generate(series, prompt=LENGTHS, output=LENGTHS, seed=1)
    assert trace.times_seconds[-1] < 1002
    assert len(trace) == pytest.approx(4000, rel=0.1)


def test_scale_repeat_and_cut():
    series = generate.diurnal(trough=1, peak=3, hours=2)
    trace = generate.generate(series, prompt=LENGTHS, output=LENGTHS, seed=1)
    for factor in (0.3, 1.0, 2.5):
        scaled = trace.scaled(factor, seed=2)
        assert len(scaled) == pytest.approx(factor * len(trace), rel=0.1)
        assert all(a <= b for a, b in itertools.pairwise(scaled.times_seconds))
    assert (trace.scaled(1.0).times_seconds == trace.times_seconds).all()
    longer = trace.repeated(3 * trace.span_seconds)
    assert len(longer) == 3 * len(trace)
    assert len(trace.until(600.0)) == int((trace.times_seconds < 600).sum())


def test_same_seed_same_traffic():
    series = generate.diurnal(trough=1, peak=3, hours=1)
    one, two = (generate.generate(series, prompt=LENGTHS, output=LENGTHS, seed=7) for _ in range(2))
    assert list(one.arrivals()) == list(two.arrivals())


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("azure-2023/AzureLLMInferenceTrace_conv.csv", 19366),
        ("azure-2023/AzureLLMInferenceTrace_code.csv", 8819),
        ("mooncake/conversation_trace.jsonl", 12031),
    ],
)
def test_public_traces(name, count):
    root = os.environ.get("WATTKEEPER_DATA")
    path = Path(root or "/nonexistent") / "traces" / name
    if not path.exists():
        pytest.skip(f"WATTKEEPER_DATA has no traces/{name}")
    trace = formats.load(path)
    assert len(trace) == count
    assert trace.span_seconds == pytest.approx(3600, rel=0.05)
    if "mooncake" in name:
        assert trace.cached_tokens.sum() / trace.prompt_tokens.sum() == pytest.approx(0.366, abs=0.02)


def test_the_same_requests_in_every_table(tmp_path):
    tables = {
        "azure24": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.5+00:00,7,8\n2024-05-10 02:00:02+02:00,9,3\n",
        "burst": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,7,8,15,x\n6,a,3,0,3,x\n"
        "6.5,b,9,3,12,x\n",
        "own": "time_s, prompt_tokens, output_tokens\n2,9,3\n.5,7,8\n",
        "stamped": "timestamp,prompt_tokens,output_tokens\n2024-05-10T00:00:00.5Z,7,8\n2024-05-10T00:00:02,9,3\n",
        "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n1,7,8\n2.5,9,3\n",
    }
    found = {name: formats.load(write(tmp_path, text, name)) for name, text in tables.items()}
    for trace in found.values():
        assert [tuple(arrival)[:4] for arrival in trace.arrivals()] == [(0.0, 7, 8, 0), (1.5, 9, 3, 0)]
    assert found["burst"].repairs == ("1 requests that failed (0 response tokens), left out",)
    assert found["own"].repairs == ("1 requests out of order, sorted",)


def test_an_unsorted_mooncake_file_keeps_blocks_with_their_requests(tmp_path):
    rows = [
        {"timestamp": 500, "input_length": 1024, "output_length": 7, "hash_ids": [1, 2]},
        {"timestamp": 0, "input_length": 512, "output_length": 5, "hash_ids": [1]},
    ]
    trace = formats.load(write(tmp_path, "\n".join(map(json.dumps, rows)), "trace.jsonl"))
    assert trace.cached_tokens.tolist() == [0, 512]
    assert trace.cached_under(0).tolist() == [0, 0]
