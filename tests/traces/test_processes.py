"""Generators: rates, order, seeds; ServeGen files to requests; sources."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.traces import generate, processes, servegen, sources, summary
from wattkeeper.traces.trace import RateSeries, TraceError

PROCESSES = (
    processes.Poisson(rate=5.0),
    processes.Gamma(rate=5.0, coefficient_of_variation=2.0),
    processes.Mmpp(rate=5.0, on_seconds=2.0),
    processes.Thinned(
        process=processes.Poisson(rate=10.0),
        series=RateSeries(times_seconds=(0.0, 2000.0), requests_per_second=(0.0, 10.0)),
    ),
    processes.Sum(parts=(processes.Poisson(rate=2.0), processes.Gamma(rate=3.0, coefficient_of_variation=0.5))),
)


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10_000))
@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_rate_order_span_and_seed(process, seed):
    times = process.times(2000.0, seed=seed)
    # Between runs the count of the switching process varies by 7 % (one standard deviation).
    assert len(times) == pytest.approx(10_000, rel=0.35 if isinstance(process, processes.Mmpp) else 0.15)
    assert (np.diff(times) >= 0).all()
    assert 0.0 <= times[0] <= times[-1] < 2000.0
    assert (times == process.times(2000.0, seed=seed)).all()


def test_a_flash_crowd_over_a_day_of_gamma_arrivals():
    crowd = processes.flash_crowd(
        base=1.0, peak=9.0, at_seconds=600.0, rise_seconds=60.0, hold_seconds=300.0, decay_seconds=120.0
    )
    day = generate.diurnal(trough=1.0, peak=3.0, hours=1.0)
    both = processes.Sum(
        parts=[
            processes.Thinned(process=processes.Gamma(rate=each.peak, coefficient_of_variation=1.5), series=each)
            for each in (crowd, day)
        ]
    )
    lengths = LengthDistribution.lognormal(mean=300, coefficient_of_variation=1.0)
    trace = processes.requests(both, span_seconds=3600.0, prompt=lengths, output=lengths, seed=4, prefix_hit_ratio=0.5)
    within = ((trace.times_seconds > 660) & (trace.times_seconds < 960)).sum() / 300
    assert within == pytest.approx(9.0 + day.at(800.0), rel=0.15)
    found = summary.summarise(trace)
    assert found.prefix_hit_ratio == pytest.approx(0.5, abs=0.03)
    assert found.peak_requests_per_second > 2 * found.requests_per_second
    with pytest.raises(ValueError, match="flash crowd needs"):
        processes.flash_crowd(base=3.0, peak=1.0, at_seconds=1.0, rise_seconds=1.0, hold_seconds=1.0, decay_seconds=1.0)


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
