"""A flash crowd; ServeGen files to requests; sources."""

import json
import math

import numpy as np
import pytest

from wattkeeper.traces import generate, servegen, sources
from wattkeeper.traces.trace import TraceError


def test_a_flash_crowd_rises_holds_and_falls():
    crowd = generate.flash_crowd(
        base=1.0, peak=9.0, at_seconds=600.0, rise_seconds=60.0, hold_seconds=300.0, decay_seconds=120.0
    )
    assert [crowd.at(time) for time in (0.0, 600.0, 630.0, 660.0, 960.0)] == [1.0, 1.0, 5.0, 9.0, 9.0]
    assert crowd.at(1080.0) == pytest.approx(1.0 + 8.0 / math.e, rel=0.01)
    assert crowd.at(3600.0) == 1.0
    with pytest.raises(ValueError, match="flash crowd needs"):
        generate.flash_crowd(base=3.0, peak=1.0, at_seconds=1.0, rise_seconds=1.0, hold_seconds=1.0, decay_seconds=1.0)


def service(tmp_path, rates="0,10,1,3\n600,0.1,1,3\n1200,20,2,3\n1800,10,1,3\n"):
    agg, lengths = tmp_path / "agg.csv", tmp_path / "lengths.json"
    agg.write_text("t_s,rate_rps,rate_weighted_cv,active_clients\n" + rates)
    histogram = {"10": 0.5, "30": 0.5}
    lengths.write_text(json.dumps({"input_tokens_hist": histogram, "output_tokens_hist": histogram}))
    return agg, lengths


def test_servegen_keeps_rates_and_bridges_gaps(tmp_path):
    found = servegen.load(*service(tmp_path))
    assert found.requests_per_second.tolist() == [10.0, 15.0, 20.0, 10.0]
    trace = found.requests(seed=3)
    counts = np.histogram(trace.times_seconds, np.arange(0, 2401, 600))[0] / 600
    assert counts == pytest.approx([10, 15, 20, 10], rel=0.1)
    assert set(trace.prompt_tokens.tolist()) == {10, 30}
    assert trace.repairs == ("1 of 4 windows are gaps of the collection, bridged",)
    assert found.requests(seed=3, start_seconds=1200.0, seconds=600.0).span_seconds == 600.0


def test_servegen_errors(tmp_path):
    agg, lengths = service(tmp_path, "0,10,1,3\n600,x,1,3\n")
    with pytest.raises(TraceError, match=r"agg.csv:3: rate_rps is 'x', expected a number; correct"):
        servegen.load(agg, lengths)
    agg, lengths = service(tmp_path)
    lengths.write_text("{}")
    with pytest.raises(TraceError, match="input_tokens_hist: expected an object"):
        servegen.load(agg, lengths)
    with pytest.raises(TraceError, match="cannot be read"):
        servegen.load(tmp_path / "none", lengths)


def test_state_of_sources(tmp_path):
    source = sources.find("azure-2023-conv")
    assert sources.state(source, tmp_path) is sources.State.ABSENT
    with pytest.raises(TraceError, match=r"is missing: get it from https://"):
        sources.load(source, tmp_path)
    path = tmp_path / source.files[0]
    path.parent.mkdir(parents=True)
    path.write_text("x\n")
    assert sources.state(source, tmp_path) is sources.State.BROKEN
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10,1,1\n2024-05-11,1,1\n")
    assert sources.state(source, tmp_path) is sources.State.CHANGED
    with pytest.raises(TraceError, match="no trace 'x'"):
        sources.find("x")
