"""One line of text to traffic: every generator, spans, seeds, parts, and what cannot be asked for."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from wattkeeper.cli import main
from wattkeeper.domain.workload import LengthDistribution
from wattkeeper.replica import arrivals
from wattkeeper.traces import build, formats, rates
from wattkeeper.traces.history import History, Window
from wattkeeper.traces.prefixes import PrefixTrace
from wattkeeper.traces.spec import TraceSpec
from wattkeeper.traces.trace import TraceError
from wattkeeper.traces.windows import Gaps

SPECS = (
    "poisson:rate=5,for=1h",
    "gamma:rate=5,cv=2,for=1h",
    "mmpp:rate=5,for=1h,on=5",
    "diurnal:trough=2,peak=8,for=1d",
    "diurnal:trough=2,peak=8,from=6h,until=8h,noise=0.2",
    "flash:base=2,peak=20,at=10m,for=1h",
)


@pytest.mark.parametrize("text", SPECS)
def test_parts_are_the_whole_and_seeds_decide(text, monkeypatch):
    monkeypatch.setattr(rates, "BLOCK_REQUESTS", 1000)
    text += ",lengths=512/128~0.5"
    found = build.traffic(text + ",seed=3")
    parts, whole = list(found.chunks()), found.trace()
    assert len(parts) > 1
    assert np.concatenate([part.times_seconds for part in parts]).tolist() == whole.times_seconds.tolist()
    assert (np.diff(whole.times_seconds) >= 0).all()
    assert whole.times_seconds[-1] < found.span_seconds == whole.span_seconds == parts[-1].span_seconds
    assert list(itertools.islice(found.arrivals(), 9)) == list(itertools.islice(whole.arrivals(), 9))
    assert len(build.build(text + ",seed=4")) != len(whole)
    assert set(whole.prompt_tokens.tolist()) == {512}
    assert whole.output_tokens.mean() == pytest.approx(128, rel=0.05)


def test_bursts_noise_and_flash_crowds_are_what_was_asked_for():
    lengths = ",lengths=9/9"
    steady = build.build("gamma:rate=20,cv=3,for=2h" + lengths).times_seconds
    assert arrivals.dispersion(steady, [60.0])[0] == pytest.approx(9.0, rel=0.5)
    noisy = build.build("poisson:rate=20,noise=0.3,for=1d" + lengths).times_seconds
    minutes = np.bincount((noisy / 60).astype(int), minlength=1440)
    assert minutes.mean() == pytest.approx(1200, rel=0.05)
    assert minutes.std() / minutes.mean() == pytest.approx(0.31, rel=0.15)
    crowd = build.build("flash:base=2,peak=20,at=10m,rise=10,hold=5m,decay=1m,for=1h" + lengths).times_seconds
    assert ((crowd > 620) & (crowd < 900)).sum() / 280 == pytest.approx(20, rel=0.15)
    day = build.build("diurnal:trough=1,peak=9,peak_hour=12,from=11h,until=13h" + lengths)
    assert len(day) / 7200 == pytest.approx(9, rel=0.1)


def rate_file(tmp_path, text="t_s,rate_rps\n0,1\n600,2\n1800,3\n2400,3\n"):
    path = tmp_path / "rates.csv"
    path.write_text(text)
    return path


def test_rates_times_lengths_and_their_gaps(tmp_path):
    found = build.traffic(f"{rate_file(tmp_path)}:from=600,until=3000,scale=10,lengths=7/8")
    assert found.notes == ("1 gaps between rates, bridged by straight lines",)
    assert found.span_seconds == 2400
    assert len(found.trace()) == pytest.approx(10 * (1200 * 2.5 + 1200 * 3), rel=0.05)
    with pytest.raises(TraceError, match="from and until must lie within"):
        build.build(f"{rate_file(tmp_path)}:until=1d,lengths=7/8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("poisson:for=1h,lengths=1/1", "poisson needs rate="),
        ("poisson:rate=5,lengths=1/1", "say how long"),
        ("poisson:rate=5,for=1h", "which lengths"),
        ("poisson:rate=5,for=1h,speed=3", "no option 'speed'; known are .*rate"),
        ("poisson:rate=nan,for=1h", "rate is 'nan'"),
        ("poisson:rate=-1,for=1h", "rate is '-1'"),
        ("poisson:rate=1,for=soon", "for is 'soon', expected a time"),
        ("poisson:rate=1,rate=2,for=1h", "comes twice"),
        ("poisson:rate=1,from=2h,until=1h", "until must be after from"),
        ("poisson:rate=1,for=1h,cv=0", "cv within"),
        ("poisson:rate=1,for=1h,gaps=ignore", "expected one of bridge, empty, skip"),
        ("poisson:rate=1,for=1h,lengths=0/5", "at least one token"),
        ("mmpp:rate=1,peak=0.5,for=1h,lengths=1/1", "peak > 1"),
        ("flash:base=3,peak=1,at=1m,for=1h,lengths=1/1", "flash crowd needs"),
        ("azure-2023-conv", "name the folder"),
        ("no-such", "no trace 'no-such'"),
    ],
)
def test_what_cannot_be_asked_for(text, message):
    with pytest.raises(TraceError, match=message):
        build.build(text)


def own(tmp_path, number=100):
    path = tmp_path / "own.csv"
    path.write_text("time_s,prompt_tokens,output_tokens\n" + "".join(f"{at},{at + 1},2\n" for at in range(number)))
    return path


def test_parts_repeats_and_scales_of_a_recorded_file(tmp_path):
    path = own(tmp_path)
    found = build.build(f"{path}:from=10,until=20")
    assert found.times_seconds.tolist() == list(range(10))
    assert found.prompt_tokens[0] == 11
    assert len(build.build(f"{path}:for=250")) == 250
    assert len(build.build(f"{path}:scale=3")) == 300
    with pytest.raises(TraceError, match="takes no cv="):
        build.build(f"{path}:cv=2")
    with pytest.raises(TraceError, match="the trace ends at 100 s"):
        build.build(f"{path}:from=200")


def prefix_file(tmp_path):
    rows = [
        {"timestamp": 1000 * at, "input_length": 1500, "output_length": 7, "hash_ids": [0, at // 4, 100 + at]}
        for at in range(40)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(0.2, 3.5), seconds=st.floats(5.0, 200.0), start=st.integers(0, 30))
def test_prefix_blocks_stay_with_their_requests(tmp_path_factory, factor, seconds, start):
    whole = formats.load(prefix_file(tmp_path_factory.mktemp("p")))
    for found in (whole.scaled(factor), whole.repeated(seconds), whole.until(seconds), whole.between(start, 40.0)):
        assert isinstance(found, PrefixTrace)
        assert len(found.blocks.offsets) == len(found) + 1
        # Blocks of a request are those it was recorded with, moved by its copy; copies share none.
        ids = found.blocks.ids.reshape(len(found), 3)
        stride = int(whole.blocks.ids.max()) + 1
        assert set(map(tuple, (ids % stride).tolist())) <= set(map(tuple, whole.blocks.ids.reshape(-1, 3).tolist()))
        assert (ids // stride == ids[:, :1] // stride).all()
        assert found.cached_tokens.tolist() == found.cached_under(10**9).tolist()
    twice = whole.repeated(2 * whole.span_seconds)
    assert twice.cached_tokens.sum() == 2 * whole.cached_tokens.sum()


def bursty_history(index):
    lengths = LengthDistribution.fixed(50)
    windows = [
        Window(
            requests_per_second=None if at in (5, 6) else 10.0,
            prompt=lengths,
            output=lengths,
            prefix_hit_ratio=0.5,
            restarts=0.0,
            dispersion=index,
        )
        for at in range(288)
    ]
    return History(source="test", start_seconds=0.0, window_seconds=300.0, windows=tuple(windows))


@pytest.mark.parametrize("index", [0.3, 1.0, 6.0])
def test_a_history_is_as_bursty_as_it_was(tmp_path, index):
    path = tmp_path / "history.json"
    bursty_history(index).write(path)
    trace = formats.load(path, seed=1)
    minutes = np.bincount((trace.times_seconds / 60).astype(int), minlength=1440).reshape(288, 5)
    found = np.mean(minutes.var(axis=1, ddof=1) / minutes.mean(axis=1))
    assert found == pytest.approx(index, rel=0.2)
    assert trace.cached_tokens.mean() == pytest.approx(25)
    assert build.build(f"{path}:seed=1").times_seconds.tolist() == trace.times_seconds.tolist()
    again = build.build(f"{path}:seed=1,from=1h,until=2h").times_seconds
    late = trace.times_seconds[(trace.times_seconds >= 3600) & (trace.times_seconds < 7200)] - 3600
    assert again == pytest.approx(late)


def test_gaps_of_a_history_can_be_bridged_emptied_or_skipped(tmp_path):
    path = tmp_path / "history.json"
    bursty_history(None).write(path)
    found = {gaps: build.traffic(f"{path}:gaps={gaps.value}") for gaps in Gaps}
    assert found[Gaps.SKIP].span_seconds == 286 * 300
    assert found[Gaps.EMPTY].span_seconds == found[Gaps.BRIDGE].span_seconds == 288 * 300
    assert len(found[Gaps.BRIDGE].trace()) > len(found[Gaps.EMPTY].trace()) + 3000
    for gaps, each in found.items():
        assert each.notes[0] == f"2 of 288 windows are gaps, {gaps.done}"
        assert "burstiness was not recorded" in each.notes[1]


def test_the_command_line_shows_generators_and_says_what_is_wrong():
    run = CliRunner().invoke(main.app, ["traces", "show", "poisson:rate=2,for=1h,lengths=100/10,seed=2"])
    assert run.exit_code == 0
    assert "in 3600 s" in run.output
    assert "p50 100" in run.output
    wrong = CliRunner().invoke(main.app, ["traces", "show", "poisson:rate=x,for=1h"])
    assert wrong.exit_code == 1


def test_a_spec_says_what_was_written():
    spec = TraceSpec.parse("a:b/c.csv:from=1.5h,gaps=skip,seed=7")
    assert (spec.what, spec.start_seconds, spec.gaps, spec.seed) == ("a:b/c.csv", 5400.0, Gaps.SKIP, 7)
